"""Between a GPU and slots: pinned pages, right bytes, and no waiting for what computes meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import torch

from tests.gpu.support import DEVICE, sleep
from transfer.endpoint import TransferEndpoint
from transfer.urls import EndpointURL

PLACE = torch.device(DEVICE)
SENDER, RECEIVER = (EndpointURL.parse(f"grpc://127.0.0.1:{port}") for port in (30101, 30102))
INCARNATION = "a" * 16
POOL = 64 << 20
TIMEOUT = 20.0


@contextlib.asynccontextmanager
async def endpoint(
    url: EndpointURL, incarnation: str, engine: str = "shm"
) -> AsyncIterator[TransferEndpoint]:
    started = await TransferEndpoint.start(url, incarnation, POOL, POOL, (engine,), device=PLACE)
    try:
        yield started
    finally:
        await started.close()


def pages(endpoint: TransferEndpoint) -> list[torch.Tensor]:
    return [torch.frombuffer(pool.arena.memory, dtype=torch.uint8) for pool in endpoint.pools]


async def test_pools_are_pinned_while_they_are_used() -> None:
    async with endpoint(SENDER, INCARNATION) as sender:
        found = pages(sender)
        assert [memory.is_pinned() for memory in found] == [True, True]
    assert [memory.is_pinned() for memory in found] == [False, False]


@pytest.mark.parametrize("engine", ["shm", "zmq"])
async def test_tensors_arrive_as_they_left(engine: str) -> None:
    values = {
        "bfloat16": torch.randn(1, 512, 4096, device=PLACE, dtype=torch.bfloat16),
        "turned": torch.randn(100, 300, device=PLACE).t(),
        "every other": torch.randn(64, 64, device=PLACE)[:, ::2],
        "scalar": torch.tensor(7, device=PLACE),
        "nothing": torch.empty(0, 3, device=PLACE),
        "mask": torch.randn(77, device=PLACE) > 0,
        "float8": torch.randn(64, device=PLACE).to(torch.float8_e4m3fn),
        "on the host": torch.randn(50),
    }
    torch.cuda.synchronize()
    async with (
        endpoint(SENDER, INCARNATION, engine) as sender,
        endpoint(RECEIVER, "b" * 16, engine) as receiver,
    ):
        held = await sender.put(values, TIMEOUT)
        received = await receiver.fetch(SENDER, INCARNATION, sender.addresses, held.location, TIMEOUT)
        assert received.values.keys() == values.keys()
        for name, value in values.items():
            arrived = received.values[name]
            assert isinstance(arrived, torch.Tensor)
            assert (arrived.dtype, arrived.shape) == (value.dtype, value.shape), name
            bits = value.contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(arrived.to(PLACE, copy=True).reshape(-1).view(torch.uint8), bits.to(PLACE)), (
                name
            )
        received.release()
        held.release()


async def test_a_put_does_not_wait_for_the_next_task() -> None:
    value = torch.randn(4 << 20, device=PLACE)
    torch.cuda.synchronize()
    async with endpoint(SENDER, INCARNATION) as sender:
        sleep(3.0)
        done = torch.cuda.Event()
        done.record()
        held = await sender.put({"x": value}, TIMEOUT)
        assert not done.query(), "the copy waited for work that was queued after its tensor"
        start = held.location.offset + 64
        slot = pages(sender)[0][start : start + value.nbytes].view(torch.float32)
        assert torch.equal(slot, value.cpu())
        held.release()
