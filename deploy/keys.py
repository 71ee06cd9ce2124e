"""``triptych keys``: makes the key file by which the roles of one cluster know each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transfer.keys import TransferKeys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a new file, for --transfer-keys of every role; keep it as secret as a password",
    )


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 when the file is written, 2 when it is there already or cannot be."""
    try:
        TransferKeys.generate().save(args.file)
    except OSError as error:
        print(f"triptych keys: {error}", file=sys.stderr)
        return 2
    return 0
