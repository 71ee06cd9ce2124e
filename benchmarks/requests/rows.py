"""All rows, in the order in which they are shown."""

from __future__ import annotations

from benchmarks.requests import (
    backlog,
    cost,
    decisions,
    latency,
    loss,
    memory,
    polls,
    split,
    throughput,
)
from benchmarks.requests.row import Goal, Row

_TENSORS = (4 * 10**6, 42 * 10**6)
# Of Wan at 480p and 81 frames: two of [1, 512, 4096] bfloat16, and [1, 16, 21, 60, 104] float32.
_WAN = (2 * 512 * 4096 * 2, 16 * 21 * 60 * 104 * 4)

ROWS = {
    row.name: row
    for row in (
        Row(
            "tiny",
            "tiny request, one client, p50",
            Goal(5, "ms"),
            latency.measure(4096, 4096, requests=100),
            latency.summary,
        ),
        Row(
            "tensors",
            "with 4 MB and 42 MB tensors, p50",
            Goal(25, "ms"),
            latency.measure(*_TENSORS, requests=50),
            latency.summary,
        ),
        Row(
            "wan",
            "Wan 480p/81 tensor shapes, p50",
            Goal(15, "ms"),
            latency.measure(*_WAN, requests=50),
            latency.summary,
        ),
        Row("cpu", "orchestrator CPU per 480p/81 video", Goal(5, "ms"), cost.measure, cost.summary),
        Row("split", "split over fused, one request", Goal(1.05), split.measure, split.summary),
        Row(
            "queue",
            "requests/s, 10,000 waiting over 100",
            Goal(0.95, at_least=True),
            backlog.measure,
            backlog.summary,
        ),
        Row(
            "decisions",
            "the same, scheduler alone",
            Goal(0.95, at_least=True),
            decisions.measure,
            decisions.summary,
        ),
        Row(
            "throughput",
            "throughput over the bound",
            Goal(0.97, at_least=True),
            throughput.measure,
            throughput.summary,
        ),
        Row(
            "polls",
            "event loop's lag p99, 50 clients' polls",
            Goal(50, "ms"),
            polls.measure,
            polls.summary,
        ),
        Row("kill", "a denoiser killed: failed or wrong", Goal(0), loss.measure, loss.summary),
        Row(
            "memory",
            "a role's memory over its weights",
            Goal(1.05),
            memory.measure,
            memory.summary,
        ),
    )
}
