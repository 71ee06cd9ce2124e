"""A state machine over producer and consumer: whatever is interleaved, every slot comes back."""

import asyncio
import itertools
import random
from collections.abc import Coroutine
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from transfer.endpoint import Held, Received, TransferEndpoint
from transfer.errors import TransferError
from transfer.header import HEADER_BYTES
from transfer.urls import EndpointURL

POOL_BYTES = 1 << 18
SIZES = st.sampled_from([0, 1, 100, 4000, 20_000, 100_000])
# Which slot a rule takes. What is there depends on time, so no rule may ask for it while it draws.
PICK = st.integers(0, 1 << 16)
URLS = {side: EndpointURL("127.0.0.1", port) for side, port in (("producer", 1), ("consumer", 2))}
_lives = itertools.count(1)


def assert_empty(endpoint: TransferEndpoint) -> None:
    for pool in endpoint.pools:
        stats = pool.stats()
        assert (stats.slots_in_use, stats.free_bytes, stats.waiting) == (0, stats.bytes, 0), stats


class EverySlotComesBack(RuleBasedStateMachine):
    """Success, failed read, cancel, timeout and the death of either side, in any order."""

    @initialize(engine=st.sampled_from(["shm", "zmq"]), seed=st.integers(0, 99))
    def begin(self, engine: str, seed: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine = engine
        self.chance = random.Random(seed)
        self.lives: dict[str, str] = {}
        self.ends: dict[str, TransferEndpoint] = {}
        self.held: list[tuple[Held, str, int]] = []  # with the producer's life and the value inside
        self.received: list[Received] = []
        for side in URLS:
            self.start(side)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def start(self, side: str) -> None:
        life = f"{next(_lives):016x}"
        start = TransferEndpoint.start(URLS[side], life, POOL_BYTES, POOL_BYTES, (self.engine,))
        self.lives[side], self.ends[side] = life, self.run(start)

    def fetch(self, index: int, timeout: float = 5.0) -> Coroutine[Any, Any, Received]:
        held, life, _ = self.held[index]
        addresses = self.ends["producer"].addresses
        return self.ends["consumer"].fetch(URLS["producer"], life, addresses, held.location, timeout)

    @rule(count=SIZES, value=st.integers(0, 255))
    def put(self, count: int, value: int) -> None:
        tensor = torch.full((count,), value, dtype=torch.uint8)
        try:
            held = self.run(self.ends["producer"].put({"x": tensor}, timeout=0.01))
        except TransferError:
            return  # no room, and that in time
        self.held.append((held, self.lives["producer"], value))

    @rule(pick=PICK)
    def read(self, pick: int) -> None:
        if not self.held:
            return
        index = pick % len(self.held)
        _, life, value = self.held[index]
        try:
            received = self.run(self.fetch(index, timeout=2.0))
        except TransferError:
            full = self.ends["consumer"].pools[1].stats().free_bytes < POOL_BYTES // 2
            assert full or life != self.lives["producer"], "a slot of this life was there to be read"
            return
        assert life == self.lives["producer"], "read from a life that has ended"
        assert all(x == value for x in received.values["x"].tolist())
        self.received.append(received)

    @rule(pick=PICK, turns=st.integers(0, 6))
    def cancel(self, pick: int, turns: int) -> None:
        if not self.held:
            return
        index = pick % len(self.held)

        async def cancelled() -> Received | None:
            task = asyncio.create_task(self.fetch(index))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            return outcome if isinstance(outcome, Received) else None

        received = self.run(cancelled())
        if received is not None:
            self.received.append(received)

    @rule(pick=PICK)
    def read_too_late(self, pick: int) -> None:
        """The deadline has passed when the read begins, or passes within it."""
        if not self.held:
            return
        index = pick % len(self.held)
        try:
            self.received.append(self.run(self.fetch(index, timeout=self.chance.choice([0.0, 1e-4]))))
        except TransferError:
            pass

    @rule(pick=PICK)
    def release_then_read(self, pick: int) -> None:
        if not self.held:
            return
        index = pick % len(self.held)
        work = self.fetch(index, timeout=2.0)
        held, life, _ = self.held.pop(index)
        if life == self.lives["producer"]:
            held.release()
        try:
            self.run(work)
        except TransferError:
            return
        raise AssertionError("read a slot that was released")

    @rule(pick=PICK, turns=st.integers(0, 6))
    def release_while_it_is_read(self, pick: int, turns: int) -> None:
        """The reader gets the right bytes or none, and the slot comes back when its last chunk has left."""
        if not self.held:
            return
        index = pick % len(self.held)
        work = self.fetch(index)
        held, life, value = self.held.pop(index)

        async def released() -> Received | BaseException:
            task = asyncio.create_task(work)
            for _ in range(turns):
                await asyncio.sleep(0)
            if life == self.lives["producer"]:
                held.release()
            return (await asyncio.gather(task, return_exceptions=True))[0]

        outcome = self.run(released())
        if isinstance(outcome, Received):
            assert all(x == value for x in outcome.values["x"].tolist())
            self.received.append(outcome)
        else:
            assert isinstance(outcome, TransferError)

    @rule(pick=PICK, owners=st.integers(1, 3))
    def share(self, pick: int, owners: int) -> None:
        """Several users of what was read: it goes with the last."""
        if not self.received:
            return
        received = self.received.pop(pick % len(self.received))
        before = self.ends["consumer"].pools[1].stats().slots_in_use
        for _ in range(owners):
            received.retain()
        for _ in range(owners):
            received.release()
        assert self.ends["consumer"].pools[1].stats().slots_in_use == before
        received.release()
        assert self.ends["consumer"].pools[1].stats().slots_in_use == before - 1

    @rule(pick=PICK)
    def done_with(self, pick: int) -> None:
        if self.received:
            self.received.pop(pick % len(self.received)).release()

    @rule(side=st.sampled_from(sorted(URLS)))
    def die(self, side: str) -> None:
        """Its process ends with slots in use, and another life begins at the same URL."""
        self.run(self.ends[side].close())
        if side == "consumer":
            self.received.clear()
        self.start(side)

    @invariant()
    def nobody_waits_without_a_call(self) -> None:
        if hasattr(self, "ends"):
            assert all(pool.stats().waiting == 0 for end in self.ends.values() for pool in end.pools)

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        for received in self.received:
            received.release()
        for held, life, _ in self.held:
            if life == self.lives["producer"]:
                held.release()
        self.run(self.quarantine_over())
        for end in self.ends.values():
            assert_empty(end)
            self.run(end.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def quarantine_over(self) -> None:
        """Slots of cancelled reads come back when their threads have ended, pinned ones when all is sent."""
        for end in self.ends.values():
            await asyncio.gather(*end._at_work, return_exceptions=True)
        await asyncio.sleep(0)  # for what is called when they have ended
        whole = await self.ends["producer"].pools[0].acquire(POOL_BYTES - HEADER_BYTES, 30)
        whole.release()


TestEverySlotComesBack = EverySlotComesBack.TestCase
TestEverySlotComesBack.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
