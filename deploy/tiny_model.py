"""The tiny Wan text-to-video model of the demo; ``deploy.tiny`` has those of all families."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.tiny.wan import build

__all__ = ["build"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.tiny_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    print(build(args.folder, args.seed))


if __name__ == "__main__":
    main()
