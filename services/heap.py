"""How much of the memory that a role frees its process keeps, so that the next request needs no new pages.

By itself glibc gives the end of a heap back as soon as some megabytes of it are free, and any block of more
than 32 MB when it is freed. The next request takes pages anew: each is a page fault that clears 4 KiB. That
made the demo model's VAE a seventh slower. Threads have heaps in pieces of 64 MB, whose ends are given back
too: so all share one heap.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 << 20  # free at the end of the heap, or a block: more of it is given back
PAD_BYTES = 64 << 20  # what then stays, and what the heap grows by at least

_SETTINGS = {  # what the environment calls each, and malloc.h's number of it
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, KEPT_BYTES),
    "MALLOC_TOP_PAD_": (-2, PAD_BYTES),
    "MALLOC_MMAP_THRESHOLD_": (-3, KEPT_BYTES),
}


def keep_freed() -> bool:
    """To be called before there are threads. What the environment sets stays as it says.

    False where the C library is another one: it is left alone.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.gnu_get_libc_version  # noqa: B018 - raises where it is another library of that name
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    ours = [setting for name, setting in _SETTINGS.items() if name not in os.environ]
    return all(mallopt(number, value) for number, value in ours)
