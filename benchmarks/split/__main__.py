"""`python -m benchmarks.split`: three processes beside the fused pipeline: latency, throughput, memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.row import Goal, Report, Row
from benchmarks.runner import Topic, goals, main
from benchmarks.split import latency, memory, models, saturation

_ONE = Goal(1.05)


def table(reports: Sequence[Report]) -> str:
    """Goals, and below them the memory of each process."""
    weighed = [report for report in reports if report.row.name in ("memory", "memory-layers")]
    return goals(reports) + (f"\n\n{memory.table(weighed)}" if weighed else "")


TOPIC = Topic(
    "split",
    "Measures split against fused.",
    (
        Row("latency", "one request, split / fused", _ONE, latency.measure(models.drawing), latency.summary),
        Row(
            "latency-large",
            "the same, more weights",
            _ONE,
            latency.measure(models.large),
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
    table=table,
    takes_model=True,
)

if __name__ == "__main__":
    sys.exit(main(TOPIC))
