"""Pools for a long time: at saturation most of the memory stays useful, and nothing is lost or shared."""

import asyncio
import itertools
import random
import statistics
import struct
from bisect import bisect_left, insort

import pytest

from transfer.allocator import GRANULARITY, Allocator
from transfer.arena import Arena
from transfer.header import HEADER_BYTES
from transfer.pool import Pool

MB = 1_000_000
SIZES = [MB // 2, MB, 8 * MB, 20 * MB, 30 * MB]  # latents of an image and of videos, embeddings
CAPACITY = 256 << 20
OPERATIONS = 24_000
WINDOW = 500  # samples of the useful share; the mean of fewer says more of chance than of the allocator
STAMP = struct.Struct("<Q")


class Model:
    """What an allocator must do, by a sorted list of the ranges that are taken: best fit, lowest first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.taken: list[tuple[int, int]] = []

    def holes(self) -> list[tuple[int, int]]:
        edges = [(0, 0), *self.taken, (self._capacity, self._capacity)]
        return [(start - end, end) for (_, end), (start, _) in itertools.pairwise(edges) if start > end]

    def allocate(self, size: int) -> int | None:
        return min((hole for hole in self.holes() if hole[0] >= size), default=(0, None))[1]

    def take(self, start: int, end: int) -> None:
        index = bisect_left(self.taken, (start, end))
        assert index == 0 or self.taken[index - 1][1] <= start
        assert index == len(self.taken) or end <= self.taken[index][0]
        assert 0 <= start < end <= self._capacity
        insort(self.taken, (start, end))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_allocator_agrees_with_a_sorted_list(seed: int) -> None:
    chance = random.Random(seed)
    allocator, model = Allocator(CAPACITY), Model(CAPACITY)
    wanted = chance.choice(SIZES)
    payload: dict[int, int] = {}  # offset -> bytes that were asked for
    shares: list[float] = []
    for _ in range(OPERATIONS):
        size = -(-wanted // GRANULARITY) * GRANULARITY
        expected = model.allocate(size)
        offset = allocator.allocate(wanted)
        assert offset == expected
        if offset is None:  # full: one leaves, whoever it is
            shares.append(sum(payload.values()) / CAPACITY)
            start, _ = model.taken.pop(chance.randrange(len(model.taken)))
            allocator.free(start)
            del payload[start]
        else:
            model.take(offset, offset + size)
            payload[offset] = wanted
            wanted = chance.choice(SIZES)
        assert allocator.free_bytes == CAPACITY - sum(end - start for start, end in model.taken)
        assert len(allocator) == len(model.taken)
    for start, _ in model.taken:
        allocator.free(start)
    assert allocator.allocate(CAPACITY) == 0
    assert_no_creep(shares)


def assert_no_creep(shares: list[float]) -> None:
    """The useful share of a full pool is high in every window, and no lower in the end than at first."""
    assert len(shares) >= 8 * WINDOW
    windows = [statistics.mean(shares[at : at + WINDOW]) for at in range(0, len(shares) - WINDOW, WINDOW)]
    assert min(windows) >= 0.75
    quarter = len(shares) // 4
    assert statistics.mean(shares[-quarter:]) >= statistics.mean(shares[:quarter]) - 0.02


async def test_slots_keep_their_bytes_at_saturation() -> None:
    """Many owners take, stamp, hold, check and release, more than the pool can serve at once."""
    arena = Arena("outbox", CAPACITY)
    pool = Pool("outbox", arena)
    chance, numbers = random.Random(4), itertools.count()
    shares: list[float] = []

    async def own() -> None:
        while (number := next(numbers)) < OPERATIONS // 2:
            lease = await pool.acquire(chance.choice(SIZES), 600)
            places = (0, lease.payload.nbytes // 2, lease.payload.nbytes - STAMP.size)
            for at in places:
                STAMP.pack_into(lease.payload, at, number)
            lease.publish(b"", number)
            for _ in range(chance.randrange(1, 40)):
                await asyncio.sleep(0)
            assert all(STAMP.unpack_from(lease.payload, at) == (number,) for at in places)
            stats = pool.stats()
            if stats.waiting:
                shares.append(1 - stats.free_bytes / stats.bytes)
            lease.release()

    await asyncio.gather(*(own() for _ in range(64)))
    stats = pool.stats()
    assert (stats.free_bytes, stats.slots_in_use, stats.waiting) == (CAPACITY, 0, 0)
    whole = await pool.acquire(CAPACITY - HEADER_BYTES, 0)
    whole.release()
    assert_no_creep(shares)
    arena.close()
