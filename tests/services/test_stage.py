"""Stages: what a task leaves behind when it ends well, fails, is cancelled, or has no room."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from services.media.files import MediaError
from services.media.store import LocalStore, media_path
from services.model.base import Cancelled, Control, Decoded, Limits, Value
from services.model.emulated import EmulatedModel
from services.role import Role
from services.stage import MediaStage, TensorStage
from triptych_proto.control_pb2 import Generation, Run

ROOT = Path(__file__).parents[2]
REQUEST = Generation(prompt="p", width=32, height=32, num_frames=9, fps=8, num_inference_steps=2)
LATENTS: dict[str, Value] = {"latents": torch.zeros(16)}


class Watched:
    """Cancels after so many frames."""

    def __init__(self, cancel_after: int = 1000) -> None:
        self.steps: list[int] = []
        self._cancel_after = cancel_after

    def progress(self, step: int, total: int) -> None:
        self.steps.append(step)

    def raise_if_cancelled(self) -> None:
        if len(self.steps) >= self._cancel_after:
            raise Cancelled


class BreaksDown(EmulatedModel):
    """Fails after so many frames."""

    def __init__(self, good: int) -> None:
        super().__init__(Role.DECODER, "emulated:", Limits())
        self._good = good

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        return Decoded(self._until_broken(super().decode(generation, inputs, control).frames))

    def _until_broken(self, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for index, frames in enumerate(chunks):
            if index == self._good:
                raise ZeroDivisionError("bug")
            yield frames


def task(task_id: str) -> Run:
    return Run(task_id=task_id, generation=REQUEST)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


@pytest.fixture
def stage(videos: Path) -> MediaStage:
    return MediaStage(EmulatedModel(Role.DECODER, "emulated:", Limits()), LocalStore(videos))


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_is_claimed_until_it_is_accepted(stage: MediaStage, videos: Path) -> None:
    product = stage.run(task("job/decode/e-1"), LATENTS, Watched())
    assert product.task_id == "job/decode/e-1"
    assert product.file is not None and product.file.name == "job-decode-e-1.mp4"
    assert product.file.bytes == media_path(videos, product.file.name).stat().st_size
    assert files(videos) == {"job-decode-e-1.mp4", "job-decode-e-1.mp4.claim"}
    for _ in range(2):
        stage.accept(product)
        assert files(videos) == {"job-decode-e-1.mp4"}
    assert stage.recover() == []


def test_a_discarded_file_is_gone(stage: MediaStage, videos: Path) -> None:
    product = stage.run(task("a"), LATENTS, Watched())
    for _ in range(2):
        stage.discard(product)
        assert files(videos) == set()


def test_a_result_outlives_its_process(stage: MediaStage, videos: Path) -> None:
    product = stage.run(task("job/decode/e-1"), LATENTS, Watched())
    assert product.claim is not None
    assert stage.recover() == []  # not while it lives
    product.claim.leave()
    (recovered,) = stage.recover()
    assert (recovered.task_id, recovered.file, recovered.values) == (product.task_id, product.file, None)
    stage.accept(recovered)
    assert files(videos) == {"job-decode-e-1.mp4"}


@pytest.mark.parametrize("frames", [0, 1, 5, 9])
def test_a_cancelled_task_leaves_nothing(stage: MediaStage, videos: Path, frames: int) -> None:
    """9 is past the last look at the control: that task is finished."""
    control = Watched(cancel_after=frames)
    if frames == REQUEST.num_frames:
        stage.discard(stage.run(task("a"), LATENTS, control))
    else:
        with pytest.raises(Cancelled):
            stage.run(task("a"), LATENTS, control)
    assert len(control.steps) == frames
    assert files(videos) == set()


@pytest.mark.parametrize("good", [0, 1, 8])
def test_a_failed_task_leaves_nothing(tmp_path: Path, good: int) -> None:
    stage = MediaStage(BreaksDown(good), LocalStore(tmp_path))
    with pytest.raises(ZeroDivisionError):
        stage.run(task("a"), LATENTS, Watched())
    assert files(tmp_path) == set()


def test_a_request_that_no_file_can_hold_leaves_nothing(stage: MediaStage, videos: Path) -> None:
    generation = Generation(width=32, height=32, num_frames=1, num_inference_steps=1)
    with pytest.raises(ValueError, match="fps is 0"):
        stage.run(Run(task_id="a", generation=generation), LATENTS, Watched())
    assert files(videos) == set()


def test_the_next_attempt_has_a_name_of_its_own(stage: MediaStage, videos: Path) -> None:
    first, second = (stage.run(task(f"job/decode/e-{n}"), LATENTS, Watched()) for n in (1, 2))
    stage.discard(first)
    stage.accept(second)
    assert files(videos) == {"job-decode-e-2.mp4"}


def test_an_accepted_file_is_not_written_over(stage: MediaStage, videos: Path) -> None:
    stage.accept(stage.run(task("a"), LATENTS, Watched()))
    before = (videos / "a.mp4").read_bytes()
    with pytest.raises(MediaError, match=r"a\.mp4: there is such a file already"):
        stage.run(task("a"), LATENTS, Watched())
    assert files(videos) == {"a.mp4"}
    assert (videos / "a.mp4").read_bytes() == before


def test_no_room_for_the_file(stage: MediaStage, videos: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 40, 600):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(MediaError, match=r"a\.mp4"):
                stage.run(task("a"), LATENTS, Watched())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert files(videos) == set()
    stage.accept(stage.run(task("a"), LATENTS, Watched()))


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """With each page and each file of room less: at the claim, the header, in the middle, at the record."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace here: {error}")
    result = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.services.media.full_disk", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    outcomes = json.loads(result.stdout)
    by_pages, by_files = outcomes["by_pages"], outcomes["by_files"]
    assert all(outcome["left"] == [] for outcome in [*by_pages.values(), *by_files.values()])
    pages = by_pages["24"]["pages"]
    assert 4 < pages < 24
    for free, outcome in by_pages.items():
        if int(free) > pages:  # one more than the video's own: the record
            assert outcome["frames"] == 12
        else:
            assert "No space left" in outcome["error"]
            culprit = f"pages-{free}.mp4" + (".claim" if int(free) == pages else "")
            assert outcome["error"].startswith(f"{tmp_path}/{culprit}: ")
    errors = {int(free): outcome.get("error", "") for free, outcome in by_files.items()}
    assert errors[0].startswith(f"{tmp_path}/files-0.mp4.claim: ")
    assert errors[1].startswith(f"{tmp_path}/files-1.mp4: ")
    assert len(errors) > 3 and not any(error for free, error in errors.items() if free > 1)


def test_tensors_leave_nothing_outside_memory() -> None:
    stage = TensorStage(EmulatedModel(Role.ENCODER, "emulated:", Limits()))
    product = stage.run(task("job/encode/e-1"), {}, Watched())
    assert product.task_id == "job/encode/e-1"
    assert product.values is not None and product.values.keys() == {"embeddings"}
    assert product.claim is None
    stage.accept(product)
    stage.discard(product)
    assert stage.recover() == []
