"""What a run has written, read back: reports of rows, and cells of the data plane."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.row import Effort, Goal, Report, Round, Row
from benchmarks.table import Spread
from benchmarks.transfer.cell import Cell


def records(folder: Path, topic: str) -> list[dict[str, Any]]:
    """The lines of a topic; none if it was not measured."""
    path = folder / f"{topic}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(record: dict[str, Any]) -> Report:
    """As it was when the record was written, but for how to measure it again."""
    goal = record["goal"]
    row = Row(
        record["row"],
        record["what"],
        None if goal is None else Goal(goal, record["unit"], record["at_least"]),
        _nothing,
        unit=record["unit"],
    )
    rounds = [Round(one["value"], one["raw"]) for one in record["rounds"]]
    return Report(row, rounds, record["load_before"], record["cores_used_by_others"])


def cell(record: dict[str, Any]) -> Cell:
    """Of the topic ``transfer``."""
    spreads = {name: Spread(**record[name]) if record[name] else None for name in ("put", "fetch")}
    total = Spread(**record["total"])
    return Cell(record["name"], record["nbytes"], record["rounds"], total, **spreads, floor=record["floor"])


def _nothing(effort: Effort) -> Iterator[Round]:
    return iter(())
