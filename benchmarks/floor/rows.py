"""Rows of the topic, and its tables: the floor, Triptych beside it, and the parts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.floor import beside, cost, large, memory, parts, tiny
from benchmarks.requests.rows import TENSORS, WAN
from benchmarks.row import Report, Row, middle
from benchmarks.runner import Topic
from benchmarks.table import markdown, number

FIGURES = {"one": "p50", "rate": "rate", "tensors": "p50", "wan": "p50", "cpu": "server"}
HEADING = (
    "what", "floor", "rounds", "Triptych", "rounds", "Triptych's over it", "CPU ms a request, floor",
    "Triptych", "others",
)  # fmt: skip
NAMES = {**parts.WHAT, **memory.LARGE}
PARTS_HEADING = ("part", "times", "ms", "rounds", "CPU ms")


def table(reports: Sequence[Report]) -> str:
    """Both tables; each of what was measured."""
    found = {report.row.name: report for report in reports}
    tables = []
    if lines := [_line(found[name]) for name in FIGURES if name in found]:
        tables.append(markdown(HEADING, lines))
    if "parts" in found:
        tables.append(markdown(PARTS_HEADING, _parts(found["parts"])))
    return "\n\n".join(tables)


def _line(report: Report) -> list[str]:
    figure = FIGURES[report.row.name]
    cells = []
    for system in beside.SYSTEMS:
        values = [one.raw[system][figure] for one in report.rounds]
        cells += [f"{number(middle(report.rounds, system, figure))} {report.unit}", _range(values)]
    cpu = [_middle_cpu(report, system) for system in beside.SYSTEMS]
    ratio = f"x {number(middle(report.rounds, 'ratio'))}"
    return [report.row.what, *cells, ratio, *map(number, cpu), number(report.others)]


def _parts(report: Report) -> list[list[str]]:
    lines = []
    measured = report.rounds[0].raw
    # Those of large tensors are no part of a tiny request.
    for name in filter(measured.__contains__, (*parts.WHAT, "sum", *memory.LARGE)):
        lines.append(
            [
                NAMES.get(name, "all, one after the other"),
                str(parts.TIMES.get(name, "")),
                number(middle(report.rounds, name, "ms")),
                _range([one.raw[name]["ms"] for one in report.rounds]),
                number(middle(report.rounds, name, "cpu")),
            ]
        )
    return lines


def _middle_cpu(report: Report, system: str) -> float:
    return statistics.median(beside.cpu_of(one.raw[system]) for one in report.rounds)


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))}..{number(max(values))}"


TOPIC = Topic(
    "floor",
    "Measures the least program for a request that keeps a job and writes a video, beside Triptych.",
    (
        Row("one", "tiny request, one client, p50", None, tiny.one, beside.summary("p50", "ms"), "ms"),
        Row("rate", "tiny requests, 8 clients", None, tiny.many, beside.summary("rate", "req/s"), "req/s"),
        Row(
            "tensors",
            "with 4 MB and 42 MB tensors, p50",
            None,
            large.measure(*TENSORS),
            beside.summary("p50", "ms"),
            "ms",
        ),
        Row(
            "wan",
            "Wan 480p/81 tensor shapes, p50",
            None,
            large.measure(*WAN),
            beside.summary("p50", "ms"),
            "ms",
        ),
        Row("cpu", "server's CPU per 480p/81 video", None, cost.measure, cost.line, "ms"),
        Row("parts", "the parts of a tiny request by themselves", None, parts.measure, parts.summary, "ms"),
    ),
    short=("one", "parts"),
    table=table,
)
