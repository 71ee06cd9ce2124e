"""Pools: whatever mix of waiting, granting, cancelling and releasing, every slot comes back."""

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transfer.allocator import GRANULARITY
from transfer.arena import Arena
from transfer.errors import PoolFull, SlotGone, TooLarge
from transfer.header import HEADER_BYTES, RELEASED
from transfer.pool import MAX_WAITING, Lease, Pin, Pool

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
    assert pool.published == {location.offset: lease}
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


async def test_released_slot_stays_until_its_readers_let_go(pool: Pool) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    assert pool.pin(0, lease.generation) is None  # not published yet
    lease.payload[:] = b"a" * lease.payload.nbytes
    lease.publish(b"{}", 42)
    assert pool.pin(0, lease.generation + 1) is None
    assert pool.pin(GRANULARITY, lease.generation) is None
    first, second = pool.pin(0, lease.generation), pool.pin(0, lease.generation)
    assert first and second
    lease.release()
    assert bytes(first.header) == RELEASED
    assert pool.pin(0, lease.generation) is None
    with pytest.raises(PoolFull):
        await pool.acquire(1, 0)
    first.release()
    first.release()  # does nothing
    assert pool.stats().slots_in_use == 1
    room = asyncio.create_task(pool.acquire(1, 60))
    await asyncio.sleep(0)
    assert bytes(second.payload) == b"a" * exactly(UNITS)
    await asyncio.to_thread(second.release)
    (await room).release()


async def test_readers_that_let_go_first_change_nothing(pool: Pool) -> None:
    lease = await pool.acquire(1, 1)
    location = lease.publish(b"{}", 42)
    for _ in range(3):
        pin = pool.pin(location.offset, location.generation)
        assert pin
        pin.release()
    assert pool.stats().slots_in_use == 1
    lease.release()


async def test_reader_lets_go_while_somebody_begins_to_wait(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await pool.acquire(exactly(UNITS), 1)
    lease.publish(b"{}", 42)
    pin = pool.pin(0, lease.generation)
    assert pin
    lease.release()
    loop = asyncio.get_running_loop()
    create_future = loop.create_future

    def let_go() -> asyncio.Future[Lease]:
        pin.release()
        return create_future()

    monkeypatch.setattr(loop, "create_future", let_go)
    (await pool.acquire(1, 1)).release()


async def test_each_owner_releases(pool: Pool) -> None:
    lease = await pool.acquire(1, 1)
    lease.publish(b"{}", 42)
    lease.retain()
    lease.release()
    assert pool.published
    lease.release()
    assert not pool.published
    for again in (lease.retain, lease.release):
        with pytest.raises(RuntimeError, match="released before"):
            again()


def test_reader_outlives_the_loop_of_those_who_waited() -> None:
    arena = Arena("outbox", UNITS * GRANULARITY)
    pool = Pool("outbox", arena)
    lease = asyncio.run(pool.acquire(exactly(UNITS), 1))
    lease.publish(b"{}", 42)
    pin = pool.pin(0, lease.generation)
    assert pin
    lease.release()
    with pytest.raises(PoolFull):
        asyncio.run(pool.acquire(1, 0.001))
    pin.release()
    assert is_empty(pool)
    arena.close()


async def test_readers_in_many_threads(pool: Pool) -> None:
    """Slots are taken, stamped, published and released while threads find and pin them as they please."""
    ended = threading.Event()

    def read(seed: int) -> int:
        chance, found = random.Random(seed), 0
        while not ended.is_set():
            for offset, lease in list(pool.published.items()):
                pin = pool.pin(offset, lease.generation)
                if pin is None:
                    continue
                view = pin.payload[:]
                weakref.finalize(view, pin.release)
                stamp = bytes(view)
                if chance.random() < 0.5:
                    time.sleep(0)  # the owner's chance to release it and to write to another
                assert bytes(view) == stamp == stamp[:1] * len(stamp)
                del view
                found += 1
        return found

    reading = [asyncio.create_task(asyncio.to_thread(read, seed)) for seed in range(3)]
    count = 0
    try:
        while count < 300:
            leases = [await pool.acquire(exactly(size), 60) for size in (1, 2, 3)]
            for lease in leases:
                count += 1
                lease.payload[:] = bytes([count % 256]) * lease.payload.nbytes
                lease.publish(b"{}", 42)
            await asyncio.sleep(0)
            for lease in leases:
                lease.release()
    finally:
        ended.set()
    assert sum(await asyncio.gather(*reading))


class Taken(NamedTuple):
    """A use of a part of the arena."""

    start: int
    end: int
    generation: int


class PoolMachine(RuleBasedStateMachine):
    """Acquires, expiries, cancels, reads and releases in any order, in the same or different loop turns."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.arena = Arena("outbox", UNITS * GRANULARITY)
        self.pool = Pool("outbox", self.arena)
        self.asking: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.pins: list[tuple[Pin, Taken, bytes]] = []  # with what is there to be read

    @rule(units=st.integers(1, UNITS), patient=st.booleans())
    def acquire(self, units: int, patient: bool) -> None:
        timeout = 3600 if patient else 0
        self.asking.append(self.loop.create_task(self.pool.acquire(exactly(units), timeout)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.asking:
            data.draw(st.sampled_from(self.asking)).cancel()

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            pin = self.pool.pin(lease.offset, lease.generation)
            assert pin
            self.pins.append((pin, taken(lease), bytes(pin.payload)))

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        if self.pins:
            self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))[0].release()

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
                lease = task.result()
                lease.payload[:] = bytes([lease.generation % 256]) * lease.payload.nbytes
                lease.publish(b"", 0)
                self.leases.append(lease)
            elif not task.cancelled():
                assert isinstance(task.exception(), PoolFull)

    @invariant()
    def slots_are_apart(self) -> None:
        slots = {taken(lease) for lease in self.leases} | {slot for _, slot, _ in self.pins}
        assert all(before.end <= after.start for before, after in pairwise(sorted(slots)))
        assert self.pool.stats().slots_in_use >= len(slots)
        generations = [lease.generation for lease in self.leases]
        assert len(set(generations)) == len(generations)

    @invariant()
    def what_is_read_stays(self) -> None:
        assert all(pin.payload == content for pin, _, content in self.pins)

    def teardown(self) -> None:
        # Those who wait patiently must all be served by releases alone: no wake-up was lost.
        while self.asking or self.leases or self.pins:
            if self.leases:
                self.leases.pop().release()
            elif self.pins:
                self.pins.pop()[0].release()
            before = len(self.asking)
            for _ in range(3):
                self.turn()
            assert self.leases or self.pins or not self.asking or len(self.asking) < before
        assert is_empty(self.pool)
        self.loop.close()
        self.arena.close()


def taken(lease: Lease) -> Taken:
    return Taken(lease.offset, lease.offset + HEADER_BYTES + lease.payload.nbytes, lease.generation)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
