"""Stages: what a task leaves behind when it ends well, fails, is cancelled, or has no room."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.media.files import MediaError
from services.media.store import LocalStore, media_path
from services.media.video import QUEUE_CHUNKS
from services.model.base import Cancelled, Control, Decoded, InvalidRequest, Limits, Value
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


# ---- formats


@pytest.mark.parametrize(
    ("model", "format", "name", "content_type", "rate"),
    [
        ("emulated:", "", "a.mp4", "video/mp4", 0),
        ("emulated:", "webm", "a.webm", "video/webm", 0),
        ("emulated:sound=24000", "mp4", "a.mp4", "video/mp4", 48_000),
        ("emulated:sound=48000", "webm", "a.webm", "video/webm", 48_000),
        ("emulated:output=image", "", "a.png", "image/png", 0),
        ("emulated:output=image", "jpeg", "a.jpg", "image/jpeg", 0),
        ("emulated:output=image", "webp", "a.webp", "image/webp", 0),
    ],
)
def test_a_file_in_the_format_asked_for(
    videos: Path, model: str, format: str, name: str, content_type: str, rate: int
) -> None:
    emulated = EmulatedModel(Role.DECODER, model, Limits())
    stage = MediaStage(emulated, LocalStore(videos))
    generation = Generation()
    generation.CopyFrom(emulated.facts.defaults)
    generation.format = format
    product = stage.run(Run(task_id="a", generation=generation), LATENTS, Watched())
    file = product.file
    assert file is not None and product.claim is not None
    assert (file.name, file.content_type, file.audio_rate) == (name, content_type, rate)
    assert (file.width, file.height, file.num_frames) == (64, 64, generation.num_frames)
    assert file.fps == generation.fps
    assert files(videos) == {name, f"{name}.claim"}
    product.claim.leave()
    (recovered,) = stage.recover()
    assert recovered.file == file
    stage.accept(recovered)
    assert files(videos) == {name}


@pytest.mark.parametrize(
    ("model", "fields", "problem"),
    [
        ("emulated:", {"format": "png"}, "format is 'png', expected one of mp4, webm"),
        ("emulated:", {"format": "../x"}, "expected one of mp4"),
        ("emulated:output=image", {"format": "mp4", "num_frames": 1}, "expected one of png, jpeg, webp"),
        ("emulated:output=image", {"quality": 101, "num_frames": 1}, "quality is 101, expected at most 100"),
        ("emulated:output=image", {"num_frames": 5}, "num_frames is 5, expected at most 1"),
    ],
)
def test_a_format_that_cannot_be_is_the_requests_fault(
    videos: Path, model: str, fields: dict[str, Any], problem: str
) -> None:
    stage = MediaStage(EmulatedModel(Role.DECODER, model, Limits()), LocalStore(videos))
    generation = Generation()
    generation.CopyFrom(REQUEST)
    generation.MergeFrom(Generation(**fields))
    with pytest.raises(InvalidRequest, match=problem):
        stage.run(Run(task_id="a", generation=generation), LATENTS, Watched())
    assert files(videos) == set()


def test_sound_depends_on_the_latents(videos: Path) -> None:
    model = EmulatedModel(Role.DECODER, "emulated:sound=16000", Limits())
    tones = [
        model.decode(REQUEST, {"latents": torch.full((16,), float(value))}, Watched()).sound
        for value in (0, 0, 1)
    ]
    first, same, other = (tone.samples for tone in tones if tone is not None)
    assert first.shape == (2, round(9 / 8 * 16_000)) and first.dtype == np.float32
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_a_file_that_is_handed_over_goes_when_it_is_accepted(videos: Path) -> None:
    model = EmulatedModel(Role.DECODER, "emulated:", Limits())
    stage = MediaStage(model, LocalStore(videos, hand_over=True))
    product = stage.run(task("a"), LATENTS, Watched())
    assert product.file is not None and product.file.hand_over and product.claim is not None
    product.claim.leave()
    (recovered,) = MediaStage(model, LocalStore(videos)).recover()
    assert files(videos) == {"a.mp4", "a.mp4.claim"}
    stage.accept(recovered)
    assert files(videos) == set()


# ---- encoding along with decoding


class Long(EmulatedModel):
    """Chunks of four frames that do not compress well. ``look`` is called before each is made."""

    def __init__(self, look: Callable[[int], None]) -> None:
        super().__init__(Role.DECODER, "emulated:", Limits(max_frames=1000))
        self._look = look
        self.living = 0  # chunks that somebody still holds
        self.most = 0

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        return Decoded(self._chunks(generation))

    def _chunks(self, generation: Generation) -> Iterator[np.ndarray]:
        chance = np.random.default_rng(0)
        done = 0
        while done < generation.num_frames:
            self._look(done)
            count = min(4, generation.num_frames - done)
            shape = (count, generation.height // 8, -(-generation.width // 8), 3)
            blocks = chance.integers(0, 256, shape, np.uint8)
            frames = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :, : generation.width].copy()
            self.living += 1
            self.most = max(self.most, self.living)
            weakref.finalize(frames, self._gone)
            done += count
            yield frames
            del frames

    def _gone(self) -> None:
        self.living -= 1


@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_encoding_overlaps_decoding(videos: Path, format: str) -> None:
    """Frames lie encoded in the file while the last ones are not even asked for. An order, not a race: past
    two thirds of the frames the model waits until it is so.
    """
    part = videos / f"a.{format}.part"

    def look(done: int) -> None:
        deadline = time.monotonic() + 60
        while done >= 56 and part.stat().st_size < 64 << 10:
            assert time.monotonic() < deadline, f"{done} frames were decoded and none is encoded"
            time.sleep(0.005)

    stage = MediaStage(Long(look), LocalStore(videos))
    request = Generation(width=832, height=480, num_frames=81, fps=16, num_inference_steps=1, format=format)
    product = stage.run(Run(task_id="a", generation=request), {}, Watched())
    assert product.file is not None and product.file.num_frames == 81
    stage.accept(product)


@pytest.mark.parametrize(("num_frames", "width"), [(200, 416), (200, 406)])
def test_memory_is_bounded_by_the_chunk(videos: Path, num_frames: int, width: int) -> None:
    """However long the video: the queue, one chunk that is encoded and one that waits to get in."""
    model = Long(lambda done: None)
    request = Generation(width=width, height=240, num_frames=num_frames, fps=16, num_inference_steps=1)
    stage = MediaStage(model, LocalStore(videos))
    product = stage.run(Run(task_id="a", generation=request), {}, Watched())
    stage.accept(product)
    assert product.file is not None and product.file.num_frames == num_frames
    assert model.most <= QUEUE_CHUNKS + 3
    assert model.living == 0
