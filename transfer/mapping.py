"""Maps memory files so that the kernel can use large pages, with which a copy looks up fewer addresses."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

LARGE_PAGE = 2 << 20  # bytes, on x86-64 and on arm64 with small pages of 4 KB
_PAGE = mmap.PAGESIZE
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # linux/mman.h
_MADV_COLLAPSE = 25  # from Linux 6.1
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def map_writable(fd: int, nbytes: int) -> memoryview:
    """The ``nbytes`` of a memory file that has all its pages, all mapped, in large pages where there are any.

    They are asked for by ``madvise``, which needs no setting of the machine. Without them it is slower, and
    all the same. The mapping lives as long as views of it. Raises OSError.
    """
    address = _reserve(nbytes)
    try:
        _map(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd)
        _libc.madvise(address, nbytes, _MADV_COLLAPSE)
        # Once more, as the pages are now: none has to be found at its first use.
        _map(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | mmap.MAP_POPULATE, fd)
    except BaseException:
        _libc.munmap(address, nbytes)
        raise
    return _view(address, nbytes)


def map_readable(fd: int, nbytes: int) -> memoryview:
    """The same for reading alone, as another process has prepared it. Raises OSError."""
    address = _reserve(nbytes)
    try:
        _map(address, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd)
    except BaseException:
        _libc.munmap(address, nbytes)
        raise
    return _view(address, nbytes).toreadonly()


def _reserve(nbytes: int) -> int:
    """Addresses for ``nbytes``, from a whole large page on."""
    length = -(-nbytes // _PAGE) * _PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    start = _map(None, length + LARGE_PAGE, 0, flags, -1)
    address = -(-start // LARGE_PAGE) * LARGE_PAGE
    if address > start:
        _libc.munmap(start, address - start)
    if rest := start + LARGE_PAGE - address:
        _libc.munmap(address + length, rest)
    return address


def _map(address: int | None, nbytes: int, protection: int, flags: int, fd: int) -> int:
    flags |= 0 if address is None else _MAP_FIXED
    mapped = _libc.mmap(address, nbytes, protection, flags, fd, 0)
    if mapped == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(mapped)


def _view(address: int, nbytes: int) -> memoryview:
    block = (ctypes.c_char * nbytes).from_address(address)
    # Not at the end of the process, when there may still be views.
    weakref.finalize(block, _libc.munmap, address, nbytes).atexit = False
    return memoryview(block).cast("B")
