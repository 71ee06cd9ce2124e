"""``python -m deploy.tiny DIR --family NAME``: writes a tiny model of that family."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.tiny.table import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.tiny", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="wan", choices=tuple(MODELS), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    print(MODELS[args.family](args.folder, args.seed))


if __name__ == "__main__":
    main()
