"""Pools: exact-size slots cut from an arena, each with one owner, handed out first come first served."""

import asyncio
import secrets
from dataclasses import dataclass

from transfer.allocator import GRANULARITY, Allocator
from transfer.arena import Arena
from transfer.errors import PoolFull, TooLarge
from transfer.header import HEADER_BYTES, RELEASED, Header

MAX_WAITING = 1024


@dataclass(frozen=True)
class SlotLocation:
    """Where a published payload lies in its producer's memory, and what must be found there."""

    arena: str
    offset: int  # of the slot's header in the arena, in bytes
    length: int  # payload bytes
    generation: int
    checksum: int  # xxh3-64 of the payload
    manifest: bytes

    @property
    def header(self) -> Header:
        return Header(self.generation, self.length, self.checksum)


@dataclass(frozen=True)
class PoolStats:
    """A moment of a pool; sizes in bytes."""

    name: str
    bytes: int
    free_bytes: int
    slots_in_use: int
    waiting: int


def arena_bytes(slots: int, payload: int) -> int:
    """How large an arena is that holds `slots` slots of `payload` bytes each; never nothing."""
    slot = -(-(payload + HEADER_BYTES) // GRANULARITY) * GRANULARITY
    return max(slots, 1) * slot


class Lease:
    """A slot and the right to write it, until it is released."""

    def __init__(self, pool: "Pool", offset: int, nbytes: int, generation: int) -> None:
        self.offset = offset
        self.generation = generation
        self._pool = pool
        memory = pool.arena.memory
        self._header = memory[offset : offset + HEADER_BYTES]
        self.payload = memory[offset + HEADER_BYTES : offset + HEADER_BYTES + nbytes]

    def publish(self, manifest: bytes, checksum: int) -> SlotLocation:
        """Lets peers read the payload, which must not change from here on."""
        location = SlotLocation(
            self._pool.name, self.offset, self.payload.nbytes, self.generation, checksum, manifest
        )
        self._header[:] = location.header.pack()
        self._pool.published[self.offset] = location
        return location

    def release(self) -> None:
        """Gives the slot back; raises RuntimeError if that was done before."""
        self._pool._take_back(self)

    def _invalidate(self) -> None:
        self._header[:] = RELEASED


class Pool:
    """The slots of one arena.

    All methods belong to the event loop's thread. Other threads may only look into `published`,
    where each change is one atomic step.
    """

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self.arena = arena
        self.published: dict[int, SlotLocation] = {}  # by offset; live slots that peers may read
        self._allocator = Allocator(arena.nbytes)
        self._leases: set[Lease] = set()
        self._waiters: dict[asyncio.Future[Lease], int] = {}  # in order of arrival -> payload bytes
        # Not from 0: a reader by raw address must not take one life of a process for another.
        self._generation = secrets.randbits(48)
        self._closed = False

    async def acquire(self, nbytes: int, timeout: float) -> Lease:
        """A slot for a payload of exactly `nbytes`, waiting at most `timeout` seconds behind earlier calls.

        Raises TooLarge at once if it can never fit, PoolFull if it does not fit in time.
        """
        if nbytes + HEADER_BYTES > self._allocator.capacity:
            raise TooLarge(f"{self.name}: {nbytes} bytes cannot fit into {self.arena.nbytes}")
        if self._closed:
            raise PoolFull(f"{self.name} is closed")
        if not self._waiters and (lease := self._cut(nbytes)):
            return lease
        if len(self._waiters) >= MAX_WAITING:
            raise PoolFull(f"{self.name}: {MAX_WAITING} others wait already")
        return await self._wait(nbytes, timeout)

    def stats(self) -> PoolStats:
        allocator, waiting = self._allocator, len(self._waiters)
        return PoolStats(self.name, allocator.capacity, allocator.free_bytes, len(self._leases), waiting)

    def close(self) -> None:
        """Refuses those who wait and all who come; slots in use stay with their owners."""
        self._closed = True
        for waiter in self._waiters:
            _refuse(waiter, f"{self.name} is closed")

    def _cut(self, nbytes: int) -> Lease | None:
        offset = self._allocator.allocate(nbytes + HEADER_BYTES)
        if offset is None:
            return None
        self._generation += 1
        lease = Lease(self, offset, nbytes, self._generation)
        self._leases.add(lease)
        return lease

    async def _wait(self, nbytes: int, timeout: float) -> Lease:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Lease] = loop.create_future()
        late = f"{self.name}: no room for {nbytes} bytes within {timeout:g} s"
        timer = loop.call_later(timeout, _refuse, waiter, late)
        self._waiters[waiter] = nbytes
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()  # granted in the same turn of the loop as the cancel
            raise
        finally:
            timer.cancel()
            if self._waiters.pop(waiter, None) is not None:
                self._grant()  # those behind may have waited only for this one

    def _grant(self) -> None:
        """Serves waiters strictly in order, so that small requests cannot starve a large one."""
        for waiter, nbytes in list(self._waiters.items()):
            if not waiter.done():
                lease = self._cut(nbytes)
                if lease is None:
                    return
                waiter.set_result(lease)
            del self._waiters[waiter]

    def _take_back(self, lease: Lease) -> None:
        if lease not in self._leases:
            raise RuntimeError(f"{self.name}: generation {lease.generation} was released before")
        self._leases.remove(lease)
        # The header goes first: a reader that looks once more finds the slot gone, not another's bytes.
        self.published.pop(lease.offset, None)
        lease._invalidate()
        self._allocator.free(lease.offset)
        self._grant()


def _refuse(waiter: "asyncio.Future[Lease]", reason: str) -> None:
    if not waiter.done():
        waiter.set_exception(PoolFull(reason))
