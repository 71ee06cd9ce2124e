"""Claims: whoever dies, and whenever: no result is lost and no file stays behind."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from services.media import claims
from services.media.claims import Claim, claim_path, recover
from services.media.files import MediaError, part_path
from triptych_proto.control_pb2 import MediaFile


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def finished(path: Path, content: bytes = b"frames") -> Claim:
    claim = Claim.open(path, f"task/{path.stem}")
    path.write_bytes(content)
    claim.finish(MediaFile(name=path.name, bytes=len(content), fps=23.976, frames_checksum=2**64 - 1))
    return claim


# ---- one process


def test_accepted_files_stay_and_discarded_go(tmp_path: Path) -> None:
    kept, gone = finished(tmp_path / "a.mp4"), finished(tmp_path / "b.mp4")
    assert files(tmp_path) == {"a.mp4", "a.mp4.claim", "b.mp4", "b.mp4.claim"}
    for _ in range(2):
        kept.accept()
        gone.discard()
    kept.discard()
    gone.accept()
    assert files(tmp_path) == {"a.mp4"}
    assert recover(tmp_path) == []
    assert files(tmp_path) == {"a.mp4"}


def test_an_unfinished_file_is_discarded_whole(tmp_path: Path) -> None:
    claim = Claim.open(tmp_path / "a.mp4", "task")
    part_path(claim.path).touch()
    claim.discard()
    assert files(tmp_path) == set()


def test_what_is_left_is_recovered_as_it_was(tmp_path: Path) -> None:
    claim = finished(tmp_path / "a.mp4")
    assert recover(tmp_path) == []
    claim.leave()
    (recovered,) = recover(tmp_path)
    assert (recovered.path, recovered.task_id, recovered.file) == (claim.path, "task/a", claim.file)
    assert recover(tmp_path) == []
    recovered.accept()
    assert files(tmp_path) == {"a.mp4"}


def test_a_torn_record_is_no_record(tmp_path: Path) -> None:
    """Cut anywhere, as by a crash of the machine, or of the right length but not yet written back."""
    path = tmp_path / "a.mp4"
    finished(path).leave()
    record = claim_path(path).read_bytes()
    torn = [record[:length] for length in range(len(record))]
    damaged = record.replace(b"23.976", b"23.975")
    for bad in [*torn, bytes(len(record)), damaged]:
        path.write_bytes(b"frames")
        claim_path(path).write_bytes(bad)
        assert recover(tmp_path) == []
        assert files(tmp_path) == set()
    path.write_bytes(b"frames")
    claim_path(path).write_bytes(record)
    (recovered,) = recover(tmp_path)
    recovered.discard()


@pytest.mark.parametrize("content", [None, b"", b"frame", b"frames and more"])
def test_a_result_without_its_file_is_no_result(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    finished(path).leave()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert recover(tmp_path) == []
    assert files(tmp_path) == set()


def test_a_claim_on_another_file_is_no_result(tmp_path: Path) -> None:
    finished(tmp_path / "a.mp4").leave()
    for name in ("a.mp4", "a.mp4.claim"):
        (tmp_path / name).rename(tmp_path / name.replace("a", "b", 1))
    assert recover(tmp_path) == []
    assert files(tmp_path) == set()


def test_a_name_is_claimed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TAKEN_SECONDS", 0.0)
    claim = finished(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"a\.mp4\.claim: another task has this claim"):
        Claim.open(claim.path, "other")
    claim.accept()
    with pytest.raises(MediaError, match=r"a\.mp4: there is such a file already"):
        Claim.open(claim.path, "other")
    assert files(tmp_path) == {"a.mp4"}


def test_partial_files_of_earlier_releases_go_after_a_day(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", 25 * 3600), ("young", 23 * 3600), ("claimed", 25 * 3600)):
        part = tmp_path / f"{name}.mp4.part"
        part.touch()
        os.utime(part, (now - age, now - age))
    (tmp_path / "other.part").touch()
    claim = Claim.open(tmp_path / "claimed.mp4", "task")
    part_path(claim.path).touch(exist_ok=True)
    os.utime(part_path(claim.path), (0, 0))
    assert recover(tmp_path) == []
    assert files(tmp_path) == {"young.mp4.part", "other.part", "claimed.mp4.part", "claimed.mp4.claim"}
    claim.discard()


# ---- what goes wrong


def test_a_folder_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MediaError, match=r"nowhere/a\.mp4\.claim"):
        Claim.open(tmp_path / "nowhere" / "a.mp4", "task")
    assert recover(tmp_path / "nowhere") == []
    assert str(tmp_path / "nowhere") in caplog.text


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    claim = Claim.open(tmp_path / "a.mp4", "task")
    claim.path.write_bytes(b"frames")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # the first bytes find room
    try:
        with pytest.raises(MediaError, match=r"a\.mp4\.claim: .*too large"):
            claim.finish(MediaFile(name="a.mp4", bytes=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert claim.file is None
    claim.leave()
    assert recover(tmp_path) == []
    assert files(tmp_path) == set()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    finished(tmp_path / "a.mp4").leave()

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MediaError, match=r"b\.mp4\.claim.*no locks"):
        Claim.open(tmp_path / "b.mp4", "task")
    assert recover(tmp_path) == []
    assert "a.mp4.claim" in caplog.text and "no locks" in caplog.text
    assert files(tmp_path) == {"a.mp4", "a.mp4.claim"}


def test_one_bad_claim_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.mp4.claim").mkdir()
    finished(tmp_path / "b.mp4").leave()
    (recovered,) = recover(tmp_path)
    assert recovered.path.name == "b.mp4"
    assert "a.mp4.claim" in caplog.text
    recovered.accept()


def test_what_cannot_be_removed_keeps_its_claim(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claim = Claim.open(tmp_path / "a.mp4", "task")
    part_path(claim.path).mkdir()
    claim.discard()
    assert files(tmp_path) == {"a.mp4.part", "a.mp4.claim"}
    assert "a.mp4.claim: cannot be settled" in caplog.text
    part_path(claim.path).rmdir()
    assert recover(tmp_path) == []
    assert files(tmp_path) == set()


def test_recovery_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "MAX_RECOVERED", 2)
    for name in "abc":
        finished(tmp_path / f"{name}.mp4").leave()
    first = recover(tmp_path)
    assert [claim.path.name for claim in first] == ["a.mp4", "b.mp4"]
    second = recover(tmp_path)
    assert [claim.path.name for claim in second] == ["c.mp4"]
    for claim in first + second:
        claim.discard()


# ---- between open and flock


@pytest.mark.parametrize("anew", [False, True])
def test_a_lock_on_a_removed_claim_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """Its owner settles it, and perhaps the name is claimed anew, while ``recover`` has it open."""
    path = tmp_path / "a.mp4"
    claim = finished(path)
    real, later = fcntl.flock, []

    def meanwhile(file: Any, operation: int) -> None:
        monkeypatch.undo()
        claim.discard()
        if anew:
            later.append(Claim.open(path, "later"))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    assert recover(tmp_path) == []
    assert files(tmp_path) == ({"a.mp4.claim"} if anew else set())
    for other in later:
        other.discard()


def test_a_new_claim_survives_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``recover`` finds it before it is locked, takes it for dead and removes it: it is made again."""
    real = fcntl.flock

    def meanwhile(file: Any, operation: int) -> None:
        monkeypatch.undo()
        assert recover(tmp_path) == []
        assert files(tmp_path) == set()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    claim = Claim.open(tmp_path / "a.mp4", "task")
    assert recover(tmp_path) == []
    assert files(tmp_path) == {"a.mp4.claim"}
    claim.discard()


def test_a_new_claim_waits_for_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``recover`` has it in its hands when its maker wants the lock, and lets it go after a while."""
    path = tmp_path / "a.mp4"
    real, taken, waits = fcntl.flock, [], []

    def meanwhile(file: Any, operation: int) -> None:
        if not taken:
            taken.append(claim_path(path).open("r+b"))
            real(taken[0], operation)
        real(file, operation)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            claim_path(path).unlink()
            taken[0].close()

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    monkeypatch.setattr(claims.time, "sleep", wait)
    claim = Claim.open(path, "task")
    assert len(waits) == 3
    assert recover(tmp_path) == []
    claim.discard()
    assert files(tmp_path) == set()


def test_writers_and_recovery_do_not_meet(tmp_path: Path) -> None:
    """Locks belong to open files, so threads stand for processes here."""
    stop = threading.Event()
    met: list[Claim] = []

    def recovering() -> None:
        while not stop.is_set():
            met.extend(recover(tmp_path))

    threads = [threading.Thread(target=recovering) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(150):
            finished(tmp_path / f"{number}.mp4").accept()
            finished(tmp_path / "again.mp4").discard()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert met == []
    assert files(tmp_path) == {f"{number}.mp4" for number in range(150)}
