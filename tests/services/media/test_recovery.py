"""Processes that write media files are killed: what the others find of them, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from services.media.claims import recover
from triptych_proto.control_pb2 import MediaFile

ROOT = Path(__file__).parents[3]


class Other:
    """Another process, as ``claim_process`` describes it."""

    def __init__(self, directory: Path, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.services.media.claim_process", str(directory), *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()

    def hear(self) -> Any:
        """What it says next; fails if it died instead."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """SIGKILL. Returns when it is gone."""
        self.process.kill()
        self.process.communicate()

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Any]:
    started: list[Other] = []

    def start(*command: str) -> Other:
        started.append(Other(tmp_path, *command))
        return started[-1]

    yield start
    for other in started:
        other.kill()


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_killed_while_it_writes(tmp_path: Path, others: Any) -> None:
    writer = others("write", "a", "b")
    assert writer.hear() == "done"
    living = {f"{name}.mp4.{end}" for name in "ab" for end in ("part", "claim")}
    assert files(tmp_path) == living
    assert recover(tmp_path) == []
    assert files(tmp_path) == living
    writer.kill()
    assert files(tmp_path) == living
    assert recover(tmp_path) == []
    assert files(tmp_path) == set()


def test_killed_after_it_finished(tmp_path: Path, others: Any) -> None:
    writer = others("finish", "a")
    assert writer.hear() == "done"
    assert recover(tmp_path) == []
    writer.kill()
    (claim,) = recover(tmp_path)
    assert claim.task_id == "task/a"
    assert claim.file == MediaFile(name="a.mp4", bytes=(tmp_path / "a.mp4").stat().st_size)
    claim.accept()
    assert files(tmp_path) == {"a.mp4"}


def test_two_that_recover_at_once_share_what_they_find(tmp_path: Path, others: Any) -> None:
    dead = [str(number) for number in range(24)]
    writers = [others("finish", *dead), others("write", "torn", "broken"), others("write", "living")]
    recovering = [others("recover"), others("recover")]
    for other in writers:
        assert other.hear() == "done"
    for writer in writers[:2]:
        writer.kill()
    for other in recovering:
        assert other.hear() == "ready"
    for other in recovering:
        other.tell()
    first, second = (other.hear() for other in recovering)
    results = {f"{name}.mp4": [f"task/{name}", (tmp_path / f"{name}.mp4").stat().st_size] for name in dead}
    assert not first.keys() & second.keys()
    assert first | second == results
    expected = results.keys() | {f"{name}.claim" for name in results}
    assert files(tmp_path) == expected | {"living.mp4.part", "living.mp4.claim"}

    assert recover(tmp_path) == []
    for other in [*recovering, writers[2]]:
        other.kill()
    again = recover(tmp_path)
    assert {claim.path.name for claim in again} == results.keys()
    for claim in again:
        claim.discard()
    assert files(tmp_path) == set()
