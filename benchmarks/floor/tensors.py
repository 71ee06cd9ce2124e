"""The floor's large tensors: made in memory that another process reads, in its place.

A message says only where a tensor lies. Nothing is copied, nothing checked. Each stage has one tensor, which
it makes anew for each request: enough for one request at a time, and for no more.
"""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np
import numpy.typing as npt
import xxhash

from benchmarks.floor.message import PAYLOAD_BYTES


class Made:
    """A tensor of this process. Its memory has no name: it goes with the last process that maps it."""

    def __init__(self, nbytes: int) -> None:
        """``nbytes`` is a multiple of eight. All pages are there when it returns."""
        self._descriptor = os.memfd_create("floor")
        os.ftruncate(self._descriptor, nbytes)
        mapping = _mapped(self._descriptor, nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
        self.words: npt.NDArray[np.uint64] = np.frombuffer(mapping, np.uint64)
        self.words.fill(0)
        self._place = f"/proc/{os.getpid()}/fd/{self._descriptor}".encode().ljust(PAYLOAD_BYTES, b"\0")

    def make(self, key: bytes) -> bytes:
        """Fills it as the emulated stages fill theirs; returns where it lies."""
        self.words.fill(np.frombuffer(key, np.uint64)[0])
        return self._place

    def close(self) -> None:
        """Nobody can map it any more."""
        os.close(self._descriptor)


class Read:
    """The tensors of other processes, each mapped once."""

    def __init__(self) -> None:
        self._mappings: dict[bytes, mmap.mmap] = {}

    def digest(self, place: bytes) -> bytes:
        """Of the whole tensor, as the emulated stages hash theirs."""
        mapping = self._mappings.get(place)
        if mapping is None:
            mapping = self._mappings[place] = self._map(place.rstrip(b"\0"))
        return xxhash.xxh3_64_digest(mapping)

    def _map(self, path: bytes) -> mmap.mmap:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return _mapped(descriptor, os.fstat(descriptor).st_size, mmap.PROT_READ)
        finally:
            os.close(descriptor)


def _mapped(descriptor: int, nbytes: int, protection: int) -> mmap.mmap:
    mapping = mmap.mmap(descriptor, nbytes, prot=protection)
    # Where the kernel has large pages, filling and hashing take less time.
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping
