"""Bulk work on bytes that leaves the interpreter lock to other threads.

Each call gives the lock back once and takes it once: copying or hashing piece by piece would be
kinder to the cache, but would wait for the lock at every piece when another thread computes.
"""

import numpy as np
import xxhash


def copy(target: memoryview, source: memoryview) -> None:
    """Copies `source` over `target`: contiguous bytes of equal length, else ValueError."""
    if target.nbytes != source.nbytes:
        raise ValueError(f"cannot copy {source.nbytes} bytes over {target.nbytes}")
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def checksum(view: memoryview) -> int:
    """xxh3-64 of the bytes: 16-39 ms per GB. It finds faults, not forgers."""
    return xxhash.xxh3_64_intdigest(view)
