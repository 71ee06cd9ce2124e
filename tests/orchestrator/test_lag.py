"""The metric of the event loop's lag: it is there, and shows what holds the loop up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from orchestrator.lag import LoopLag
from tests.cluster import Cluster, until

NAME = "triptych_event_loop_lag_seconds"


def seen(registry: CollectorRegistry, most: str = "+Inf") -> float:
    """How many moments were late by at most so many seconds."""
    value = registry.get_sample_value(f"{NAME}_bucket", {"le": most})
    assert value is not None
    return value


async def test_what_holds_the_loop_up_shows() -> None:
    registry = CollectorRegistry()
    task = asyncio.create_task(LoopLag(registry).run())
    await until(lambda: seen(registry) >= 2)
    late = seen(registry) - seen(registry, "0.1")
    time.sleep(1.0)  # noqa: ASYNC251 three moments or more are due meanwhile that are more than 0.1 s late
    await until(lambda: seen(registry) - seen(registry, "0.1") >= late + 3)
    total = registry.get_sample_value(f"{NAME}_sum")
    assert total is not None and total >= 0.75 + 0.5 + 0.25
    task.cancel()


async def test_the_orchestrator_has_it(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await until(lambda: seen(cluster.orchestrator.registry) >= 1)
