"""Arenas: peers can only read them, nobody can resize them, and they leave nothing behind."""

import mmap
import os

import pytest

from transfer.arena import Arena, map_readonly


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
