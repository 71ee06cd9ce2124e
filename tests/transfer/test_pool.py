"""Pools: whatever mix of waiting, granting, cancelling and releasing, every slot comes back."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transfer.allocator import GRANULARITY
from transfer.arena import Arena
from transfer.errors import PoolFull, SlotGone, TooLarge
from transfer.header import HEADER_BYTES
from transfer.pool import MAX_WAITING, Lease, Pool

UNITS = 16


def exactly(units: int) -> int:
    """The payload that fills `units` of the allocator."""
    return units * GRANULARITY - HEADER_BYTES


@pytest.fixture
def pool() -> Iterator[Pool]:
    arena = Arena("outbox", UNITS * GRANULARITY)
    pool = Pool("outbox", arena)
    yield pool
    assert is_empty(pool)
    arena.close()


def is_empty(pool: Pool) -> bool:
    stats = pool.stats()
    return (stats.free_bytes, stats.slots_in_use, stats.waiting) == (stats.bytes, 0, 0) and not pool.published


async def test_lease_has_exactly_what_was_asked(pool: Pool) -> None:
    for nbytes in (0, 1, 4032, 4033):
        lease = await pool.acquire(nbytes, 1)
        assert lease.payload.nbytes == nbytes
        assert not lease.payload.readonly
        lease.release()


async def test_publish_and_release(pool: Pool) -> None:
    lease = await pool.acquire(100, 1)
    location = lease.publish(b"{}", 42)
    header = pool.arena.memory[location.offset : location.offset + HEADER_BYTES]
    location.header.check(header)
    assert pool.published == {location.offset: location}
    lease.release()
    with pytest.raises(SlotGone, match="released"):
        location.header.check(header)
    again = await pool.acquire(100, 1)
    again.publish(b"{}", 42)
    assert again.offset == location.offset
    with pytest.raises(SlotGone, match=f"generation {again.generation}, expected {location.generation}"):
        location.header.check(header)
    again.release()


async def test_releasing_twice_is_an_error(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    lease.release()
    other = await pool.acquire(exactly(UNITS), 1)
    with pytest.raises(RuntimeError, match=f"generation {lease.generation} was released before"):
        lease.release()
    other.release()


async def test_what_can_never_fit_is_refused_at_once(pool: Pool) -> None:
    with pytest.raises(TooLarge, match="outbox"):
        await pool.acquire(exactly(UNITS) + 1, 1)


async def test_waiting_ends(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    with pytest.raises(PoolFull, match=r"no room for 1 bytes within 0\.01 s"):
        await pool.acquire(1, 0.01)
    lease.release()


async def test_a_large_request_is_not_starved(pool: Pool) -> None:
    half = await pool.acquire(exactly(UNITS // 2), 1)
    large = asyncio.create_task(pool.acquire(exactly(UNITS), 60))
    small = asyncio.create_task(pool.acquire(1, 60))
    await asyncio.sleep(0)
    assert pool.stats().waiting == 2  # though the small one would fit
    half.release()
    (await large).release()
    (await small).release()


async def test_cancelling_the_first_lets_the_next_in(pool: Pool) -> None:
    half = await pool.acquire(exactly(UNITS // 2), 1)
    large = asyncio.create_task(pool.acquire(exactly(UNITS), 60))
    small = asyncio.create_task(pool.acquire(1, 60))
    await asyncio.sleep(0)
    large.cancel()
    (await small).release()
    half.release()


async def test_cancelled_in_the_turn_of_its_grant(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    waiting = asyncio.create_task(pool.acquire(1, 60))
    await asyncio.sleep(0)
    lease.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_queue_has_an_end(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    waiting = [asyncio.create_task(pool.acquire(1, 60)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(PoolFull, match="others wait"):
        await pool.acquire(1, 60)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    lease.release()


async def test_close_refuses_those_who_wait_and_who_come(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    waiting = asyncio.create_task(pool.acquire(1, 60))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(PoolFull, match="closed"):
        await waiting
    with pytest.raises(PoolFull, match="closed"):
        await pool.acquire(1, 60)
    lease.release()


class PoolMachine(RuleBasedStateMachine):
    """Acquires, expiries, cancels and releases in any order and in the same or different loop turns."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.arena = Arena("outbox", UNITS * GRANULARITY)
        self.pool = Pool("outbox", self.arena)
        self.asking: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.generation = 0

    @rule(units=st.integers(1, UNITS), patient=st.booleans())
    def acquire(self, units: int, patient: bool) -> None:
        timeout = 3600 if patient else 0
        self.asking.append(self.loop.create_task(self.pool.acquire(exactly(units), timeout)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.asking:
            data.draw(st.sampled_from(self.asking)).cancel()

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @rule()
    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        for task in [task for task in self.asking if task.done()]:
            self.asking.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())
                self.leases[-1].publish(b"", 0)
            elif not task.cancelled():
                assert isinstance(task.exception(), PoolFull)

    @invariant()
    def slots_are_apart(self) -> None:
        ranges = sorted(
            (lease.offset, lease.offset + HEADER_BYTES + lease.payload.nbytes) for lease in self.leases
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        generations = [lease.generation for lease in self.leases]
        assert len(set(generations)) == len(generations)

    def teardown(self) -> None:
        # Those who wait patiently must all be served by releases alone: no wake-up was lost.
        while self.asking or self.leases:
            if self.leases:
                self.leases.pop().release()
            before = len(self.asking)
            for _ in range(3):
                self.turn()
            assert self.leases or not self.asking or len(self.asking) < before
        assert is_empty(self.pool)
        self.loop.close()
        self.arena.close()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
