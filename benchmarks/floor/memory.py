"""What a large tensor takes by itself: to make, to hash and to copy the latents of the row ``tensors``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.floor.message import digest
from benchmarks.floor.tensors import Made
from benchmarks.requests.rows import TENSORS

LARGE = {
    "make": "42 MB of noise, in shared memory that is in use already",
    "new": "the same, in memory that is new to the process",
    "hash": "a hash of 42 MB",
    "copy": "a copy of 42 MB into shared memory",
}


@contextlib.contextmanager
def large_tensor(key: bytes) -> Iterator[dict[str, Callable[[], object]]]:
    """The work by the names of ``LARGE``; all memory but that of ``new`` has been written before."""
    _, latents = TENSORS
    with contextlib.closing(Made(latents)) as shared:
        own = np.full(latents // 8, 1, np.uint64)
        word = np.frombuffer(key, np.uint64)[0]
        yield {
            "make": lambda: shared.make(key),
            "new": lambda: np.full(own.size, word),
            "hash": lambda: digest(own.data),
            "copy": lambda: np.copyto(shared.words, own),
        }
