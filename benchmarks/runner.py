"""The program of every topic: its rows are measured one after the other, shown, and written as JSON lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks import machine
from benchmarks.row import HEADING, Effort, Report, Row
from benchmarks.table import markdown

ROUNDS, SHORT_ROUNDS, QUICK_ROUNDS = 5, 3, 2
PACKAGES = ("aiohttp", "av", "diffusers", "grpcio", "numpy", "pyzmq", "sqlalchemy", "torch", "transformers")


def goals(reports: Sequence[Report]) -> str:
    """A line for each row, with its goal."""
    return markdown(HEADING, [report.line() for report in reports])


@dataclass(frozen=True)
class Topic:
    """``short`` are the rows of a short run; ``versions`` of what is not in our own environment."""

    name: str
    what: str
    rows: Sequence[Row]
    short: Sequence[str]
    table: Callable[[Sequence[Report]], str] = goals
    versions: Callable[[], Mapping[str, str]] = field(default=lambda: {})
    rounds: int = ROUNDS
    short_rounds: int = SHORT_ROUNDS
    takes_model: bool = False

    def named(self, names: Sequence[str]) -> list[Row]:
        return [row for row in self.rows if row.name in names]


def main(topic: Topic, arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 0 also when a goal is missed: a number is a result."""
    program = f"benchmarks.{topic.name}"
    args = _parser(topic).parse_args(arguments)
    names = [row.name for row in topic.rows]
    if unknown := [name for name in args.rows if name not in names]:
        print(f"{program}: no row {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    usual = QUICK_ROUNDS if args.quick else topic.short_rounds if args.short else topic.rounds
    rounds = args.rounds or usual
    rows = topic.named(args.rows or (topic.short if args.short else names))
    try:
        with args.json.open("w") if args.json else contextlib.nullcontext() as lines:
            _run(topic, rows, _effort(args, rounds), lines)
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def _effort(args: argparse.Namespace, rounds: int) -> Effort:
    return Effort(rounds, args.quick, args.short, getattr(args, "model", None))


def _run(topic: Topic, rows: Sequence[Row], effort: Effort, lines: TextIO | None) -> None:
    facts = machine.facts(PACKAGES)
    facts["versions"].update(topic.versions())
    facts.update(quick=effort.quick, short=effort.short)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    reports: list[Report] = []
    try:
        for row in rows:
            report = _measure(row, effort)
            reports.append(report)
            summary = row.summary(report.rounds)
            print(f"\n{row.name}: {'  '.join(filter(None, report.line()[2:6]))}\n  {summary}", flush=True)
            if lines:
                _write(lines, {**report.record(topic.name), **facts})
    finally:  # a run that fails or is stopped shows what it has
        if reports:
            print(f"\n{topic.table(reports)}", flush=True)


def _measure(row: Row, effort: Effort) -> Report:
    load, others = os.getloadavg()[0], machine.Others()
    rounds = list(row.measure(effort))  # ends its processes, whose time then counts as ours
    return Report(row, rounds, load, others.cores())


def _write(lines: TextIO, record: dict[str, Any]) -> None:
    print(json.dumps(_short(record)), file=lines, flush=True)


def _short(value: Any) -> Any:
    """The same with six digits that count: no clock here is better, and the lines are kept."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parser(topic: Topic) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{topic.name}", description=topic.what)
    names = ", ".join(row.name for row in topic.rows)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {names} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each row as a line of JSON")
    parser.add_argument("--rounds", type=_rounds, metavar="N", help=f"of each row (default: {topic.rounds})")
    if topic.takes_model:
        text = "a model folder with defaults in its triptych.json (default: the demo model)"
        parser.add_argument("--model", type=Path, metavar="DIR", help=text)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--short", action="store_true", help=f"minutes: fewer requests, rows {', '.join(topic.short)}"
    )
    effort.add_argument("--quick", action="store_true", help="see that it runs: few and small requests")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)
