"""How late the event loop is: whatever keeps it busy shows in when it gets to a task that only sleeps."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

PERIOD_SECONDS = 0.25  # to wake an idle process takes 0.2 ms of CPU, whatever it then does
LONGEST_SECONDS = 60.0  # a process that was stopped for longer counts as late by this much
BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)


class LoopLag:
    """The metric ``triptych_event_loop_lag_seconds``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "triptych_event_loop_lag_seconds",
            "How late the event loop gets to what is due, four times a second.",
            buckets=BUCKETS,
            registry=registry,
        )

    async def run(self) -> None:
        """For ever. What was due while the loop was held up counts too: a long hold is many late moments."""
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            due = max(due + PERIOD_SECONDS, now() - LONGEST_SECONDS)
            await asyncio.sleep(max(due - now(), 0.0))
            self._seconds.observe(max(now() - due, 0.0))
