"""A peer's memory goes with it, also when somebody still holds the error of a read that failed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch

from transfer.endpoint import TransferEndpoint
from transfer.errors import SlotGone
from transfer.urls import EndpointURL


def mapped() -> list[str]:
    """Arenas that are mapped for reading alone: a peer's."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "/memfd:triptych-" in line and line.split()[1].startswith("r--")]


async def endpoint(port: int) -> TransferEndpoint:
    incarnation = f"{port:016x}"
    return await TransferEndpoint.start(
        EndpointURL("127.0.0.1", port),
        incarnation,
        outbox_bytes=1 << 16,
        inbox_bytes=1 << 16,
        engines=("shm",),
    )


async def test_the_error_of_a_failed_read_keeps_no_mapping() -> None:
    before = set(mapped())
    producer, consumer = await endpoint(1), await endpoint(2)
    held = await producer.put({"x": torch.ones(100)}, timeout=5.0)
    held.release()
    with pytest.raises(SlotGone) as caught:
        await consumer.fetch(producer.url, f"{1:016x}", producer.addresses, held.location, timeout=5.0)
    assert set(mapped()) - before
    await producer.close()
    deadline = time.monotonic() + 15.0
    while set(mapped()) - before:
        assert time.monotonic() < deadline, "the arena of the dead peer is kept"
        await asyncio.sleep(0.01)
    assert caught.value.__traceback__ is not None
    await consumer.close()
