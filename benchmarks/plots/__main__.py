"""`python -m benchmarks.plots DIR`: draws TOPIC.svg beside each TOPIC.jsonl of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when there is nothing to draw, or nothing to draw it with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the topics' JSON lines are")
    folder: Path = parser.parse_args(arguments).folder
    try:
        from benchmarks.plots.figures import FIGURES
    except ModuleNotFoundError as error:
        print(f"benchmarks.plots: {error.name} is missing: pip install '.[bench]'", file=sys.stderr)
        return 1
    drawn = 0
    for topic, draw in FIGURES.items():
        path = folder / f"{topic}.jsonl"
        if path.exists() and (lines := path.read_text().splitlines()):
            draw([json.loads(line) for line in lines], path.with_suffix(".svg"))
            print(path.with_suffix(".svg"))
            drawn += 1
    if not drawn:
        names = ", ".join(f"{topic}.jsonl" for topic in FIGURES)
        print(f"benchmarks.plots: {folder} has none of {names}", file=sys.stderr)
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
