"""MP4 files: what players find in them, and what is left when writing fails."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from services.media.encoders import x264
from services.media.files import MediaError
from services.media.video import VideoWriter
from services.media.writer import MediaFacts


def picture(num_frames: int, height: int, width: int) -> np.ndarray:
    """Smooth, moving colours: what survives 4:2:0."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    times = np.linspace(0, 1, num_frames)
    frames = np.stack([np.stack([x, y, np.full_like(x, time)], axis=-1) for time in times])
    return (frames * 255).astype(np.uint8)


def written(path: Path, frames: np.ndarray, fps: float = 8.0, **options: Any) -> MediaFacts:
    _, height, width, _ = frames.shape
    writer = VideoWriter(path, width, height, fps, **options)
    for start in range(0, len(frames), 4):
        writer.write(frames[start : start + 4])
    return writer.finish()


def boxes(path: Path) -> list[bytes]:
    """The names of the file's top-level boxes."""
    data, names, position = path.read_bytes(), [], 0
    while position < len(data):
        names.append(data[position + 4 : position + 8])
        position += int.from_bytes(data[position : position + 4], "big")
    return names


@pytest.mark.parametrize("num_frames", [1, 2, 17])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (33, 17), (64, 17), (33, 48)])
def test_what_a_player_finds(tmp_path: Path, width: int, height: int, num_frames: int) -> None:
    path = tmp_path / "video.mp4"
    frames = picture(num_frames, height, width)
    facts = written(path, frames, encoder=x264(crf=1))
    even = (width + width % 2, height + height % 2)
    assert facts == MediaFacts(path.stat().st_size, *even, num_frames, 8.0)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, (stream.width, stream.height)) == ("h264", "yuv420p", even)
        assert (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1, 1)
        assert stream.average_rate == 8
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == Fraction(num_frames, 8)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert decoded.shape == padded.shape
    assert np.abs(decoded.astype(int) - padded).mean() < 4


@pytest.mark.parametrize(
    ("fps", "rate"),
    [(16.0, Fraction(16)), (23.976, Fraction(2997, 125)), (30000 / 1001, Fraction(30000, 1001))],
)
def test_the_rate_is_exact(tmp_path: Path, fps: float, rate: Fraction) -> None:
    facts = written(tmp_path / "video.mp4", picture(9, 32, 32), fps)
    assert facts.fps == float(rate)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_the_index_comes_first(tmp_path: Path) -> None:
    written(tmp_path / "video.mp4", picture(9, 32, 32))
    found = boxes(tmp_path / "video.mp4")
    assert found.index(b"moov") < found.index(b"mdat")


def test_equal_frames_equal_bytes(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, 96, 128, 3), np.uint8)
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    written(first, frames)
    written(second, frames)
    assert first.read_bytes() == second.read_bytes()


def test_quality_and_speed_are_options(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    sizes = {crf: written(tmp_path / f"{crf}.mp4", frames, encoder=x264(crf)).bytes for crf in (10, 40)}
    assert sizes[40] < sizes[10]
    written(tmp_path / "slow.mp4", frames, encoder=x264(preset="slow"))
    written(tmp_path / "fast.mp4", frames, encoder=x264(preset="ultrafast"))
    assert (tmp_path / "slow.mp4").read_bytes() != (tmp_path / "fast.mp4").read_bytes()


def test_a_colon_in_the_name_is_no_protocol(tmp_path: Path) -> None:
    written(tmp_path / "tcp:video.mp4", picture(2, 32, 32))
    assert [file.name for file in tmp_path.iterdir()] == ["tcp:video.mp4"]


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    writer = VideoWriter(path, 32, 32, 8)
    writer.write(picture(9, 32, 32))
    assert path.read_bytes() == b"old"
    writer.finish()
    writer.abort()
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("num_frames", [0, 1, 40])
def test_abort_leaves_nothing(tmp_path: Path, num_frames: int) -> None:
    with VideoWriter(tmp_path / "video.mp4", 32, 32, 8) as writer:
        writer.write(picture(40, 32, 32)[:num_frames])
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=str(tmp_path / "nowhere" / "video.mp4")):
        VideoWriter(tmp_path / "nowhere" / "video.mp4", 32, 32, 8)


def test_a_file_that_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.mkdir()
    with pytest.raises(MediaError, match=str(path)):
        written(path, picture(2, 32, 32))
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"video\.mp4: no frames"):
        VideoWriter(tmp_path / "video.mp4", 32, 32, 8).finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 20_000, 2_000_000])
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """At the header, in the middle, or when the rest is flushed."""
    path = tmp_path / "video.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (60, 240, 320, 3), np.uint8)
    with largest_file(limit), pytest.raises(MediaError, match=str(path)):
        fill(path, frames)
    assert list(tmp_path.iterdir()) == []


def fill(path: Path, frames: np.ndarray) -> None:
    with VideoWriter(path, 320, 240, 8) as writer:
        for _ in range(4):
            writer.write(frames)
        writer.finish()


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 32, 34, 3), np.uint8), np.zeros((1, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8)]
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    writer = VideoWriter(tmp_path / "video.mp4", 32, 32, 8)
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 32, 32, 3\)"):
        writer.write(frames)
    writer.abort()


def test_a_rate_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps is 0"):
        VideoWriter(tmp_path / "video.mp4", 32, 32, 0)
    assert list(tmp_path.iterdir()) == []
