"""Arenas: peers can only read them, nobody can resize them, and they leave nothing behind."""

import mmap
import os

import numpy as np
import pytest

from transfer.arena import Arena, map_readonly
from transfer.mapping import LARGE_PAGE, map_writable


def test_reader_sees_the_owners_bytes() -> None:
    arena = Arena("outbox", 10_000)
    view = map_readonly(arena.fd, 10_000)
    arena.memory[9_990:] = b"0123456789"
    assert bytes(view[9_990:]) == b"0123456789"
    arena.close()
    assert bytes(view[9_990:]) == b"0123456789"


def test_sealed() -> None:
    arena = Arena("outbox", 8192)
    assert map_readonly(arena.fd, 8192).readonly
    with pytest.raises(PermissionError):
        mmap.mmap(arena.fd, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(arena.fd, b"x", 0)
    for nbytes in (4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, nbytes)
    arena.close()


def test_reader_refuses_what_could_shrink_or_has_another_size() -> None:
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="sealed"):
        map_readonly(fd, 4096)
    with pytest.raises(ValueError, match="4096 bytes, expected 8192"):
        map_readonly(fd, 8192)
    os.close(fd)


def test_size_must_make_sense() -> None:
    with pytest.raises(ValueError, match="inbox"):
        Arena("inbox", 0)


def test_close_leaves_nothing_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    arena = Arena("vanishing", 1 << 20)
    arena.close()
    del arena
    with open("/proc/self/maps") as file:
        assert "triptych-vanishing" not in file.read()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_both_sides_can_have_large_pages() -> None:
    arena = Arena("large", 2 * LARGE_PAGE + 4096)
    view = map_readonly(arena.fd, arena.nbytes)
    for memory in (arena.memory, view):
        assert address(memory) % LARGE_PAGE == 0
    arena.memory[-1:] = b"!"
    assert view[-1:] == b"!"
    arena.close()


def test_a_mapping_goes_with_the_last_view_of_it() -> None:
    arena = Arena("viewed", 1 << 20)
    last = arena.memory[10:20]
    arena.close()
    assert mappings("triptych-viewed") == 1
    last[:] = b"0123456789"
    del last
    assert mappings("triptych-viewed") == 0


def test_what_cannot_be_mapped_leaves_nothing_behind() -> None:
    before = mappings("")
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_writable(-1, 8192)
    assert mappings("") == before


def address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])


def mappings(name: str) -> int:
    with open("/proc/self/maps") as file:
        return sum(name in line for line in file)
