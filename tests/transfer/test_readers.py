"""Slots that peers are still reading when their owner releases them: kept for those, and for no longer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import torch

from tests.transfer.greedy import Greedy
from transfer.endpoint import Held, TransferEndpoint
from transfer.engines import zmq as zmq_engine
from transfer.engines.base import Source
from transfer.engines.zmq import CHUNK_BYTES
from transfer.header import HEADER_BYTES
from transfer.pool import Pool
from transfer.urls import EndpointURL

URL = EndpointURL("127.0.0.1", 30101)
LIFE = secrets.token_hex(8)
POOL_BYTES = 4 * CHUNK_BYTES
WHOLE = POOL_BYTES - HEADER_BYTES
TIMES = 64  # far more bytes than the kernel buffers for a reader that takes nothing


@pytest.fixture
async def endpoint(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TransferEndpoint]:
    monkeypatch.setattr(zmq_engine, "_HEARTBEAT_MS", 100)
    monkeypatch.setattr(zmq_engine, "_SILENCE_MS", 1000)
    endpoint = await TransferEndpoint.start(URL, LIFE, POOL_BYTES, POOL_BYTES, ["zmq"])
    yield endpoint
    assert endpoint.pools[0].stats().free_bytes == POOL_BYTES
    await endpoint.close()


@pytest.fixture
def greedy() -> Iterator[Greedy]:
    reader = Greedy()
    yield reader
    reader.kill()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def pins(pool: Pool, held: Held) -> int:
    pool.stats()  # counts those that have ended
    return pool.published[held.location.offset]._users - 1


async def hold(endpoint: TransferEndpoint, greedy: Greedy) -> Held:
    """An output of which much is on its way to a reader that takes nothing."""
    held = await endpoint.put({"x": torch.full((CHUNK_BYTES,), 7, dtype=torch.uint8)}, 1)
    address = endpoint.addresses[0].address
    greedy.ask_for(Source(URL, LIFE, address, held.location), TIMES)
    # Those that were written to the kernel are no more of the slot's.
    await until(lambda: pins(endpoint.pools[0], held) > TIMES // 2)
    return held


async def test_released_slot_waits_for_a_slow_reader(endpoint: TransferEndpoint, greedy: Greedy) -> None:
    held, pool = await hold(endpoint, greedy), endpoint.pools[0]
    held.release()
    assert not pool.published
    assert pool.stats().slots_in_use == 1
    room = asyncio.create_task(pool.acquire(WHOLE, 30))
    # Nobody writes into the slot before the last byte has left it.
    answers = [tuple(await asyncio.to_thread(greedy.take)) for _ in range(TIMES)]
    assert answers.count(("data", "07")) > TIMES // 2
    # Requests that came after the release, if the reader was so slow, are for a slot that is gone.
    assert {kind for kind, _ in set(answers) - {("data", "07")}} <= {"gone"}
    lease = await room
    lease.payload[:CHUNK_BYTES] = bytes(CHUNK_BYTES)
    lease.release()


async def test_frozen_reader_does_not_hold_a_slot_for_ever(
    endpoint: TransferEndpoint, greedy: Greedy
) -> None:
    held, pool = await hold(endpoint, greedy), endpoint.pools[0]
    greedy.freeze()
    held.release()
    assert pool.stats().slots_in_use == 1
    (await pool.acquire(WHOLE, 30)).release()


async def test_killed_reader_lets_go(endpoint: TransferEndpoint, greedy: Greedy) -> None:
    held, pool = await hold(endpoint, greedy), endpoint.pools[0]
    held.release()
    room = asyncio.create_task(pool.acquire(WHOLE, 30))
    greedy.kill()
    (await room).release()


async def test_slot_of_the_owner_outlives_its_readers(endpoint: TransferEndpoint, greedy: Greedy) -> None:
    held, pool = await hold(endpoint, greedy), endpoint.pools[0]
    greedy.kill()
    await until(lambda: pins(pool, held) == 0)
    assert pool.stats().slots_in_use == 1
    held.release()


async def test_closing_lets_go(greedy: Greedy) -> None:
    endpoint = await TransferEndpoint.start(URL, LIFE, POOL_BYTES, POOL_BYTES, ["zmq"])
    held, pool = await hold(endpoint, greedy), endpoint.pools[0]
    held.release()
    await endpoint.close()
    await until(lambda: pool.stats().slots_in_use == 0)
