"""`python -m benchmarks.requests`: each goal of the system, measured through real processes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks import machine
from benchmarks.requests.row import HEADING, Effort, Report, Row
from benchmarks.requests.rows import ROWS
from benchmarks.table import markdown

ROUNDS, QUICK_ROUNDS = 5, 2
PACKAGES = ("aiohttp", "av", "diffusers", "grpcio", "sqlalchemy", "torch", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 0 also when a goal is missed: a number is a result."""
    args = _parser().parse_args(arguments)
    if unknown := [name for name in args.rows if name not in ROWS]:
        rows = ", ".join(ROWS)
        print(f"benchmarks.requests: no row {', '.join(unknown)}; there are {rows}", file=sys.stderr)
        return 2
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    try:
        with args.json.open("w") if args.json else contextlib.nullcontext() as lines:
            _run([ROWS[name] for name in args.rows or ROWS], Effort(rounds, args.quick), lines)
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError) as error:
        print(f"benchmarks.requests: {error}", file=sys.stderr)
        return 1
    return 0


def _run(rows: Sequence[Row], effort: Effort, lines: TextIO | None) -> None:
    facts = {**machine.facts(PACKAGES), "quick": effort.quick}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    reports: list[Report] = []
    try:
        for row in rows:
            report = _measure(row, effort)
            reports.append(report)
            print(
                f"\n{row.name}: {'  '.join(report.line()[2:6])}\n  {row.summary(report.rounds)}", flush=True
            )
            if lines:
                _write(lines, {**report.record(), **facts})
    finally:  # a run that fails or is stopped shows what it has
        if reports:
            print(f"\n{markdown(HEADING, [report.line() for report in reports])}", flush=True)


def _measure(row: Row, effort: Effort) -> Report:
    load, others = os.getloadavg()[0], machine.Others()
    rounds = list(row.measure(effort))  # ends its processes, whose time then counts as ours
    return Report(row, rounds, load, others.cores())


def _write(lines: TextIO, record: dict[str, Any]) -> None:
    print(json.dumps(record), file=lines, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.requests", description="Measures whole requests against their goals."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each row as a line of JSON")
    parser.add_argument("--rounds", type=_rounds, metavar="N", help=f"of each row (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="see that it runs: few and small requests")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
