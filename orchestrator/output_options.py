"""The command-line options about finished files: where they lie, and who reads, links and sweeps them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from transfer.remote_folder import RemoteFolder, load_options, local_folder

MAX_REDIRECT_SECONDS = 7 * 86400.0  # S3 signs for no longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("finished files").add_argument
    add(
        "--output",
        action="append",
        metavar="URL",
        help="where decoders write: a folder as this host sees it, or a store like s3://BUCKET/PREFIX; files"
        " in other stores are refused; can be repeated, and decoders of triptych up take the first (default:"
        " videos in the data directory)",
    )
    add(
        "--output-options",
        type=Path,
        metavar="FILE",
        help="options of the driver of --output, as a JSON object, like endpoint_url, key and secret; not"
        " readable for others (default: from the environment, as the driver does it)",
    )
    add(
        "--content-redirect",
        nargs="?",
        type=float,
        const=3600.0,
        metavar="S",
        help="send clients to the store for a finished file, by a link that is good for so long (%(const)s)"
        " and needs no key (default: files go through this process)",
    )
    add(
        "--orphan-age",
        type=float,
        default=86400.0,
        metavar="S",
        help="files in --output that belong to no request are removed when they are so old; 0: never"
        " (default: %(default)s)",
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where finished files lie."""

    folder: Path  # of this host
    remote: tuple[RemoteFolder, ...]
    redirect_seconds: float | None
    orphan_seconds: float | None


def load(args: argparse.Namespace, data_dir: Path) -> OutputOptions:
    """Raises OSError or ValueError that names the file or the option."""
    outputs: list[str] = args.output or []
    given = load_options(args.output_options) if args.output_options is not None else {}
    local = [folder for folder in map(local_folder, outputs) if folder is not None]
    remote = tuple(RemoteFolder(output, given) for output in outputs if local_folder(output) is None)
    if len(local) > 1:
        raise ValueError(f"--output: {local[0]} and {local[1]}, expected one folder of this host at most")
    if not remote:
        for option in ("output_options", "content_redirect"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ValueError(f"--{name}: there is no store in --output")
    redirect: float | None = args.content_redirect
    if redirect is not None and not 1 <= redirect <= MAX_REDIRECT_SECONDS:
        raise ValueError(f"--content-redirect: {redirect:g}, expected 1 to {MAX_REDIRECT_SECONDS:g} seconds")
    if not args.orphan_age >= 0:
        raise ValueError(f"--orphan-age: {args.orphan_age:g}, expected 0 or more seconds")
    return OutputOptions(
        folder=local[0].absolute() if local else data_dir / "videos",
        remote=remote,
        redirect_seconds=redirect,
        orphan_seconds=args.orphan_age or None,
    )
