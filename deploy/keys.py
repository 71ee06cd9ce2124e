"""``triptych keys``: makes the files by which the processes of one cluster know each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transfer.keys import TransferKeys
from transfer.secrets import write_token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a new file, for --transfer-keys of every role; keep it as secret as a password",
    )
    parser.add_argument(
        "--token",
        action="store_true",
        help="make a token instead, for --cluster-token-file of the orchestrator and of every role",
    )


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 when the file is written, 2 when it is there already or cannot be."""
    try:
        if args.token:
            write_token(args.file)
        else:
            TransferKeys.generate().save(args.file)
    except OSError as error:
        print(f"triptych keys: {error}", file=sys.stderr)
        return 2
    return 0
