"""`python -m benchmarks.scheduler`: long queues, many instances, throughput over its bound."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.row import Goal, Report, Row
from benchmarks.runner import Topic, goals, main
from benchmarks.scheduler import decisions, ratio, scale
from benchmarks.scheduler.ratio import Ratio

_QUEUE = Goal(0.95, at_least=True)
_BOUND = Goal(0.97, at_least=True)
_INSTANCES = (1, 4, 64)
_RATIOS = {
    "1:1:1": Ratio((1, 1, 1), (0.05, 0.4, 0.1)),
    "1:4:1": Ratio((1, 4, 1), (0.05, 0.4, 0.05)),
    "2:8:1": Ratio((2, 8, 1), (0.1, 0.8, 0.05)),
}


def table(reports: Sequence[Report]) -> str:
    """Goals, and below them the rates behind those of the queue."""
    scaled = [report for report in reports if report.row.name.startswith("queue")]
    return goals(reports) + (f"\n\n{scale.table(scaled)}" if scaled else "")


TOPIC = Topic(
    "scheduler",
    "Measures what waiting jobs and instances cost the scheduler, and throughput over its bound.",
    (
        *(
            Row(f"queue-{count}", f"{count} of each role", _QUEUE, scale.measure(count), scale.summary)
            for count in _INSTANCES
        ),
        Row("decisions", "scheduler alone, 10,000 / 100", _QUEUE, decisions.measure, decisions.summary),
        *(
            Row(name, f"over the bound, {name}", _BOUND, ratio.measure(given), ratio.summary)
            for name, given in _RATIOS.items()
        ),
    ),
    short=("decisions", "1:4:1"),
    table=table,
)

if __name__ == "__main__":
    sys.exit(main(TOPIC))
