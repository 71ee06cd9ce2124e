"""A row of a benchmark: what it measures, its goal, and what it found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import number

SHORT = 0.4  # of the requests of a full run
HEADING = ("row", "what", "measured", "rounds", "goal", "", "others")


@dataclass(frozen=True)
class Effort:
    """How much to measure. ``quick`` shows that a row runs; its numbers mean little. ``short`` is for people
    who want to see numbers within minutes: a part of the requests.
    """

    rounds: int = 5
    quick: bool = False
    short: bool = False
    model: Path | None = None  # in place of the demo model, for topics that take one

    def count(self, full: int, quick: int) -> int:
        if self.quick:
            return quick
        return max(quick, round(full * SHORT)) if self.short else full


@dataclass(frozen=True)
class Round:
    """One measurement: the number that is held against the goal, and all that was seen beside it."""

    value: float
    raw: dict[str, Any] = field(default_factory=dict)


def middle(rounds: Sequence[Round], *path: str) -> float:
    """The median over the rounds of what was seen beside their values."""

    def seen(one: Round) -> float:
        found: Any = one.raw
        for name in path:
            found = found[name]
        return float(found)

    return statistics.median(map(seen, rounds))


@dataclass(frozen=True)
class Goal:
    """At most, or at least, this."""

    value: float
    unit: str = ""
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """``measure`` yields its rounds one by one, and leaves no process behind however it ends. Without a
    ``goal`` it is there to be known; then ``unit`` says what is measured.
    """

    name: str
    what: str
    goal: Goal | None
    measure: Callable[[Effort], Iterator[Round]]
    summary: Callable[[list[Round]], str] = lambda rounds: ""  # a line about what was seen beside
    unit: str = ""


@dataclass(frozen=True)
class Report:
    """What a row found. The median of its rounds is held against the goal."""

    row: Row
    rounds: list[Round]
    load: float  # of the minute before
    others: float  # cores that other processes used meanwhile

    @property
    def median(self) -> float:
        return statistics.median(one.value for one in self.rounds)

    @property
    def unit(self) -> str:
        return self.row.goal.unit if self.row.goal else self.row.unit

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        return self.row.goal.met(self.median) if self.row.goal else None

    def line(self) -> list[str]:
        values = [one.value for one in self.rounds]
        return [
            self.row.name,
            self.row.what,
            f"{number(self.median)} {self.unit}".rstrip(),
            f"{number(min(values))}..{number(max(values))}",
            str(self.row.goal or ""),
            {True: "met", False: "missed", None: ""}[self.met],
            number(self.others),
        ]

    def record(self, topic: str) -> dict[str, Any]:
        """For a line of JSON."""
        values = [one.value for one in self.rounds]
        return {
            "benchmark": topic,
            "row": self.row.name,
            "what": self.row.what,
            "measured": self.median,
            "lowest": min(values),
            "highest": max(values),
            "unit": self.unit,
            "goal": self.row.goal and self.row.goal.value,
            "at_least": self.row.goal and self.row.goal.at_least,
            "met": self.met,
            "rounds": [asdict(one) for one in self.rounds],
            "load_before": self.load,
            "cores_used_by_others": self.others,
        }
