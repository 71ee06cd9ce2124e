"""Pools: exact-size slots cut from an arena, each with one owner, handed out first come first served."""

import asyncio
import contextlib
import secrets
import threading
from collections import deque
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
    checksum: int  # xxh3-64 of the payload; 0 if no engine of the producer's has readers that check it
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
    slots_in_use: int  # by an owner, or by readers that have not let go yet
    waiting: int


def arena_bytes(slots: int, payload: int) -> int:
    """How large an arena is that holds `slots` slots of `payload` bytes each; never nothing."""
    slot = -(-(payload + HEADER_BYTES) // GRANULARITY) * GRANULARITY
    return max(slots, 1) * slot


class Lease:
    """A slot and the right to write it, until its owners have released it."""

    def __init__(self, pool: "Pool", offset: int, nbytes: int, generation: int) -> None:
        self.offset = offset
        self.generation = generation
        self.header = pool.arena.memory[offset : offset + HEADER_BYTES]
        self.payload = pool.arena.memory[offset + HEADER_BYTES : offset + HEADER_BYTES + nbytes]
        self._pool = pool
        self._owners = 1
        self._users = 1  # the owners, as one, and each pin

    def publish(self, manifest: bytes, checksum: int) -> SlotLocation:
        """Lets peers read the payload, which must not change from here on."""
        location = SlotLocation(
            self._pool.name, self.offset, self.payload.nbytes, self.generation, checksum, manifest
        )
        self.header[:] = location.header.pack()
        self._pool.published[self.offset] = self
        return location

    def retain(self) -> None:
        """Adds an owner, who releases it too; raises RuntimeError if the slot was given back before."""
        self._pool._check(self)
        self._owners += 1

    def release(self) -> None:
        """Gives the slot back, once each owner has; raises RuntimeError if that was done before.

        From then on no peer finds it. It is used again when those who were reading it have let go.
        """
        self._pool._check(self)
        self._owners -= 1
        if not self._owners:
            self._pool._take_back(self)


class Pin:
    """A reader's hold on a published slot: its bytes stay as they are until the pin is released."""

    def __init__(self, pool: "Pool", lease: Lease) -> None:
        self.header = lease.header  # wiped if the slot is released meanwhile
        self.payload = lease.payload
        self._pool = pool
        self._lease: Lease | None = lease

    def release(self) -> None:
        """Lets go; a second time does nothing. From any thread, and from a finalizer too."""
        lease, self._lease = self._lease, None
        if lease:
            self._pool._let_go(lease)


class Pool:
    """The slots of one arena.

    All methods belong to the event loop's thread, but `pin` and what it returns are for any thread.
    """

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self.arena = arena
        self.published: dict[int, Lease] = {}  # by offset; what peers may read
        self._leases: set[Lease] = set()  # those with an owner
        self._allocator = Allocator(arena.nbytes)
        self._lock = threading.Lock()  # guards the users of leases, and removal from `published`
        self._ended: deque[Lease] = deque()  # for each pin that was released and is not yet counted
        self._waiters: dict[asyncio.Future[Lease], int] = {}  # in order of arrival -> payload bytes
        self._loop: asyncio.AbstractEventLoop | None = None  # of the waiters
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

    def pin(self, offset: int, generation: int) -> Pin | None:
        """Holds the slot published there for a reader; None if it is not that generation (any more)."""
        with self._lock:
            lease = self.published.get(offset)
            if lease is None or lease.generation != generation:
                return None
            lease._users += 1
            return Pin(self, lease)

    def stats(self) -> PoolStats:
        self._count()
        allocator, waiting = self._allocator, len(self._waiters)
        return PoolStats(self.name, allocator.capacity, allocator.free_bytes, len(allocator), waiting)

    def close(self) -> None:
        """Refuses those who wait and all who come; slots in use stay with their owners."""
        self._closed = True
        for waiter in self._waiters:
            _refuse(waiter, f"{self.name} is closed")

    def _cut(self, nbytes: int) -> Lease | None:
        self._count()
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
        self._loop, self._waiters[waiter] = loop, nbytes
        try:
            self._grant()  # a reader that let go just now may not have seen that somebody waits
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

    def _check(self, lease: Lease) -> None:
        if lease not in self._leases:
            raise RuntimeError(f"{self.name}: generation {lease.generation} was released before")

    def _take_back(self, lease: Lease) -> None:
        self._leases.remove(lease)
        with self._lock:
            # The header goes first: a reader that looks once more finds the slot gone, not another's bytes.
            self.published.pop(lease.offset, None)
            lease.header[:] = RELEASED
            self._drop(lease)
        self._grant()

    def _let_go(self, lease: Lease) -> None:
        """Takes no lock: a finalizer may interrupt the thread that has it."""
        self._ended.append(lease)
        loop = self._loop
        if loop and self._waiters:
            with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
                loop.call_soon_threadsafe(self._grant)

    def _count(self) -> None:
        """Frees what the last readers have let go."""
        with self._lock:
            while self._ended:
                self._drop(self._ended.popleft())

    def _drop(self, lease: Lease) -> None:
        lease._users -= 1
        if not lease._users:
            self._allocator.free(lease.offset)


def _refuse(waiter: "asyncio.Future[Lease]", reason: str) -> None:
    if not waiter.done():
        waiter.set_exception(PoolFull(reason))
