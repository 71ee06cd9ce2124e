"""`python -m benchmarks.split`: three processes beside the fused pipeline: latency, throughput, memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.row import Goal, Report, Row
from benchmarks.runner import Topic, goals, main
from benchmarks.split import latency, memory, models, saturation

_ONE = Goal(1.05)


def table(reports: Sequence[Report]) -> str:
    """Goals; below them the time of each stage, and the memory of each process."""
    tables = [goals(reports)]
    for prefix, detail in (("latency", latency.table), ("memory", memory.table)):
        if chosen := [report for report in reports if report.row.name.startswith(prefix)]:
            tables.append(detail(chosen))
    return "\n\n".join(tables)


TOPIC = Topic(
    "split",
    "Measures split against fused.",
    (
        Row(
            "latency",
            "one request, split / fused",
            _ONE,
            latency.measure(models.drawing, pairs=8),
            latency.summary,
        ),
        Row(
            "latency-kept",
            "the same, fused keeps freed memory",
            None,
            latency.measure(models.drawing, pairs=8, keeps_freed=True),
            latency.summary,
        ),
        Row(
            "latency-large",
            "the same, more weights",
            _ONE,
            latency.measure(models.large, pairs=1),
            latency.summary,
        ),
        Row("throughput", "at saturation, split / fused", None, saturation.measure, saturation.summary),
        Row(
            "memory", "a role's growth over its weights'", _ONE, memory.measure(models.small), memory.summary
        ),
        Row(
            "memory-layers", "the same, more layers alone", None, memory.measure(models.half), memory.summary
        ),
    ),
    short=("latency",),
    short_rounds=2,  # each starts all processes anew
    table=table,
    takes_model=True,
)

if __name__ == "__main__":
    sys.exit(main(TOPIC))
