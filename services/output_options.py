"""The options of a decoder about the files that it writes: where they go, and by what way."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from services.media.remote_store import RemoteStore
from services.media.store import LocalStore, Store
from transfer.remote_folder import RemoteFolder, load_options, local_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("media files").add_argument
    add(
        "--output",
        default="triptych-data/videos",
        metavar="URL",
        help="where media files go: a folder of this host, or a store like s3://BUCKET/PREFIX, which the"
        " orchestrator's --output must name too (default: %(default)s)",
    )
    add(
        "--output-options",
        type=Path,
        metavar="FILE",
        help="options of the driver of a store, as a JSON object, like endpoint_url, key and secret; not"
        " readable for others (default: from the environment, as the driver does it)",
    )
    add(
        "--spool-dir",
        type=Path,
        default=Path("triptych-data/spool"),
        metavar="DIR",
        help="where files are written on their way to a store (default: %(default)s)",
    )
    add(
        "--uploads",
        type=int,
        default=1,
        metavar="N",
        help="places for tasks whose file is on its way to a store, beside those of --prefetch: with none of"
        " them free, no further task is taken (default: %(default)s)",
    )
    add(
        "--upload-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="how long the upload of a file is tried again before its request fails (default: %(default)s)",
    )
    add(
        "--return",
        dest="hand_over",
        choices=("file", "bytes"),
        default="file",
        help="file: finished files stay in --output; bytes: the orchestrator copies each and it is removed"
        " here, for a disk that goes away with this process (default: %(default)s)",
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where a decoder's files go, checked."""

    directory: Path  # of this host: where they stay, or are until they are in the store
    remote: RemoteFolder | None
    uploads: int
    upload_seconds: float
    hand_over: bool  # finished files go to the orchestrator

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> OutputOptions:
        """Raises OSError or ValueError that names the option or the file."""
        if args.uploads < 0:
            raise ValueError(f"--uploads: {args.uploads}, expected 0 or more")
        if not args.upload_timeout > 0:
            raise ValueError(f"--upload-timeout: {args.upload_timeout:g}, expected more than 0 seconds")
        hand_over = args.hand_over == "bytes"
        directory = local_folder(args.output)
        if directory is not None:
            if args.output_options is not None:
                raise ValueError(f"--output-options: --output {args.output} is a folder of this host")
            return OutputOptions(directory, None, 0, args.upload_timeout, hand_over)
        if hand_over:
            raise ValueError(f"--return bytes: files that are in {args.output} need no copy")
        given = load_options(args.output_options) if args.output_options is not None else {}
        remote = RemoteFolder(args.output, given)
        return OutputOptions(args.spool_dir, remote, args.uploads, args.upload_timeout, hand_over)

    def open(self) -> Store:
        """Raises OSError if the folder of this host cannot be made."""
        if self.remote is None:
            return LocalStore(self.directory, self.hand_over)
        return RemoteStore(self.directory, self.remote, self.upload_seconds)
