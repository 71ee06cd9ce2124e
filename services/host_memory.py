"""What the C library keeps of freed tensors, for the next ones, goes back to the system."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Takes milliseconds, and those who allocate meanwhile may wait. Does nothing where the C library is not
    glibc.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))
