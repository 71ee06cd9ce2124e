"""Rows of the topic: requests that wait for nothing, and an orchestrator that is asked a lot."""

from __future__ import annotations

from benchmarks.requests import cost, latency, polls, rate
from benchmarks.row import Goal, Row
from benchmarks.runner import Topic

TENSORS = (4 * 10**6, 42 * 10**6)
# Of Wan at 480p and 81 frames: two of [1, 512, 4096] bfloat16, and [1, 16, 21, 60, 104] float32.
WAN = (2 * 512 * 4096 * 2, 16 * 21 * 60 * 104 * 4)

TOPIC = Topic(
    "requests",
    "Measures requests that wait for nothing: their time, and the orchestrator's CPU.",
    (
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
            latency.measure(*TENSORS, requests=50),
            latency.summary,
        ),
        Row(
            "wan",
            "Wan 480p/81 tensor shapes, p50",
            Goal(15, "ms"),
            latency.measure(*WAN, requests=50),
            latency.summary,
        ),
        Row(
            "rate", "tiny requests, 8 clients", Goal(730, "req/s", at_least=True), rate.measure, rate.summary
        ),
        Row("cpu", "orchestrator CPU per 480p/81 video", Goal(5, "ms"), cost.measure, cost.summary),
        Row(
            "polls",
            "event loop's lag p99, 50 clients' polls",
            Goal(50, "ms"),
            polls.measure,
            polls.summary,
        ),
    ),
    short=("tiny", "tensors", "rate"),
)
