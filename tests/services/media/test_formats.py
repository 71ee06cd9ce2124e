"""Every format through the one way to write it: what is decoded again is what was given."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from services.media.files import MediaError
from services.media.formats import FORMATS, IMAGE, VIDEO, file_name, formats_of, is_file_name
from services.media.open import open_writer
from services.media.writer import MediaFacts
from services.model.base import Sound
from triptych_proto.control_pb2 import Model

VIDEOS = [name for name, format in FORMATS.items() if format.output == VIDEO]
IMAGES = [name for name, format in FORMATS.items() if format.output == IMAGE]
# Of BT.709 in 4:2:0: primaries, greys, and what a wrong matrix or range would shift most.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 60, 120)]
NOISE = np.random.default_rng(0).integers(0, 256, (1, 37, 53, 3), np.uint8)


def coloured(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = COLOURS[index % len(COLOURS)]
    return frames


def written(path: Path, format: str, frames: np.ndarray, fps: float = 0.0, **options: object) -> MediaFacts:
    _, height, width, _ = frames.shape
    with open_writer(path, format, width, height, fps, **options) as writer:  # type: ignore[arg-type]
        for start in range(0, len(frames), 4):
            writer.write(frames[start : start + 4])
        return writer.finish()


# ---- videos


@pytest.mark.parametrize("format", VIDEOS)
@pytest.mark.parametrize(
    ("num_frames", "width", "height", "fps"),
    [(1, 64, 48, 8.0), (17, 33, 17, 16.0), (14, 64, 48, 30000 / 1001), (9, 130, 66, 23.976)],
)
def test_a_video_as_it_is_decoded(
    tmp_path: Path, format: str, num_frames: int, width: int, height: int, fps: float
) -> None:
    path = tmp_path / f"a{FORMATS[format].suffix}"
    facts = written(path, format, coloured(num_frames, height, width), fps)
    rate = Fraction(fps).limit_denominator(1001)
    even = (width + width % 2, height + height % 2)
    assert facts == MediaFacts(path.stat().st_size, *even, num_frames, float(rate))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert len(container.streams) == 1
        assert codec.name == {"mp4": "h264", "webm": "vp9"}[format]
        assert (codec.pix_fmt, codec.width, codec.height) == ("yuv420p", *even)
        assert (codec.color_range, codec.colorspace) == (1, 1)
        assert stream.average_rate is not None and abs(stream.average_rate - rate) < Fraction(1, 100)
        assert container.duration is not None
        assert abs(container.duration / 1e6 - num_frames / rate) < 1 / rate
        decoded = list(container.decode(stream))
    assert len(decoded) == num_frames
    times = [frame.time for frame in decoded]
    assert np.allclose(times, np.arange(num_frames) / float(rate), atol=0.001)  # WebM counts milliseconds
    for index, frame in enumerate(decoded):
        middle = frame.to_ndarray(format="rgb24")[8:-8, 8:-8].reshape(-1, 3)
        expected = COLOURS[index % len(COLOURS)]
        assert np.abs(middle.astype(int) - expected).max() <= 6, (index, middle[0], expected)


def elements(data: bytes) -> list[tuple[str, bytes]]:
    """The EBML elements that follow one another in ``data``: id and content."""
    found, at = [], 0
    while at < len(data):
        id_length = 9 - data[at].bit_length()
        name = data[at : at + id_length].hex()
        at += id_length
        size_length = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + size_length], "big") & ((1 << 7 * size_length) - 1)
        at += size_length
        found.append((name, data[at : at + size]))
        at += size
    return found


def test_a_webm_can_be_played_from_its_front(tmp_path: Path) -> None:
    written(tmp_path / "a.webm", "webm", coloured(9), 8.0)
    (header, head), (segment, body) = elements((tmp_path / "a.webm").read_bytes())
    assert (header, segment) == ("1a45dfa3", "18538067")
    assert dict(elements(head))["4282"] == b"webm"  # DocType
    names = [name for name, _ in elements(body)]
    index, clusters = names.index("1c53bb6b"), names.index("1f43b675")
    assert index < clusters and names.index("1549a966") < index, "what the file is, the index, the frames"
    assert "4489" in dict(elements(dict(elements(body))["1549a966"])), "its duration"


@pytest.mark.parametrize("format", VIDEOS)
def test_equal_frames_and_sound_give_equal_bytes(tmp_path: Path, format: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 96, 128, 3), np.uint8)
    for name in "ab":
        written(tmp_path / name, format, frames, 8.0, sound=click(24_000, 8.0, 9, 4))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- sound


def click(
    rate: int, fps: float, num_frames: int, frame: int, channels: int = 2, length: float = 1.0
) -> Sound:
    """Silence but for 2 ms when ``frame`` begins; of ``length`` times that of the frames."""
    samples = np.zeros((channels, round(num_frames / fps * rate * length)), np.float32)
    start, count = round(frame / fps * rate), round(0.002 * rate)
    samples[:, start : start + count] = 0.9 * np.hanning(count)
    return Sound(samples, rate)


def heard(path: Path) -> tuple[np.ndarray, int, int]:
    """The loudest channel of a file's sound, its samples per second, and the number of channels."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [frame.to_ndarray() for frame in container.decode(stream)]
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    pieces = [piece if piece.shape[0] == channels else piece.reshape(-1, channels).T for piece in frames]
    return np.abs(np.concatenate(pieces, axis=1).astype(float)).max(axis=0), rate, channels


@pytest.mark.parametrize("format", VIDEOS)
@pytest.mark.parametrize(
    ("rate", "fps", "num_frames", "channels", "length"),
    [
        (24_000, 24.0, 121, 2, 1.0),
        (16_000, 16.0, 33, 1, 1.5),  # too long: cut
        (44_100, 30000 / 1001, 45, 2, 0.7),  # too short: silence follows
        (48_000, 240.0, 5, 2, 1.0),
        (8_000, 8.0, 2, 1, 1.0),
    ],
)
def test_sound_is_where_its_frame_is(
    tmp_path: Path, format: str, rate: int, fps: float, num_frames: int, channels: int, length: float
) -> None:
    path = tmp_path / "a"
    at = num_frames // 2
    frames = np.zeros((num_frames, 48, 64, 3), np.uint8)
    frames[at:] = 255
    sound = click(rate, fps, num_frames, at, channels, length)
    facts = written(path, format, frames, fps, sound=sound)
    assert facts.audio_rate == (rate if (format, rate) == ("mp4", 44_100) else 48_000)
    with av.open(str(path)) as container:
        white = next(f.time for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 128)
    loudness, file_rate, file_channels = heard(path)
    assert (file_rate, file_channels) == (facts.audio_rate, channels)
    assert white is not None
    assert abs(loudness.argmax() / file_rate - 0.001 - white) < min(0.002, 1 / fps)
    # AAC has frames of 1024 samples, of which players leave out what is beyond the end.
    assert -0.002 < len(loudness) / file_rate - num_frames / fps < max(1 / fps, 1024 / file_rate)
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert abs(container.duration / 1e6 - num_frames / fps) < max(1 / fps, 0.01)
        for stream in container.streams:
            if stream.duration is not None and stream.time_base is not None:
                assert abs(stream.duration * stream.time_base - num_frames / fps) < min(0.002, 1 / fps)


@pytest.mark.parametrize("format", VIDEOS)
def test_sound_lies_between_the_frames(tmp_path: Path, format: str) -> None:
    """Whoever has a part of the file can play that part of both."""
    frames = np.random.default_rng(0).integers(0, 256, (96, 48, 64, 3), np.uint8)
    written(tmp_path / "a", format, frames, 8.0, sound=click(24_000, 8.0, 96, 4))
    seen = {"audio": 0.0, "video": 0.0}
    with av.open(str(tmp_path / "a")) as container:
        packets = [packet for packet in container.demux() if packet.pts is not None]
        for packet in sorted(packets, key=lambda packet: packet.pos or 0):
            seen[packet.stream.type] = float(packet.pts * packet.time_base)
            assert abs(seen["audio"] - seen["video"]) <= 1.5


@pytest.mark.parametrize(
    ("samples", "rate", "problem"),
    [
        (np.zeros((3, 100), np.float32), 24_000, "1 or 2 channels"),
        (np.zeros(100, np.float32), 24_000, "1 or 2 channels"),
        (np.zeros((1, 100)), 24_000, "float64"),
        (np.full((1, 100), np.nan, np.float32), 24_000, "no numbers"),
        (np.zeros((1, 100), np.float32), 0, "0 samples per second"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path: Path, samples: np.ndarray, rate: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        open_writer(tmp_path / "a.mp4", "mp4", 64, 48, 8.0, sound=Sound(samples, rate))
    assert list(tmp_path.iterdir()) == []


# ---- images


def test_a_png_has_the_very_pixels(tmp_path: Path) -> None:
    facts = written(tmp_path / "a.png", "png", NOISE)
    assert facts == MediaFacts((tmp_path / "a.png").stat().st_size, 53, 37, 1)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), NOISE[0])


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_lossy_image_is_as_good_as_asked_for(tmp_path: Path, format: str) -> None:
    y, x = np.mgrid[0:64, 0:96]
    picture = np.stack([x * 2, y * 3, 255 - x], axis=-1).astype(np.uint8)[None]
    sizes = []
    for quality, tolerance in ((0, 3), (100, 2), (20, 12)):
        path = tmp_path / f"{quality}"
        sizes.append(written(path, format, picture, quality=quality).bytes)
        with Image.open(path) as image:
            assert (image.format, image.size) == (format.upper(), (96, 64))
            difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - picture[0])
        assert difference.mean() < tolerance
    assert sizes[2] < sizes[0] < sizes[1]
    for index, colour in enumerate(COLOURS):
        written(tmp_path / "colour", format, coloured(len(COLOURS))[index : index + 1])
        with Image.open(tmp_path / "colour") as image:
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).max() <= 4


@pytest.mark.parametrize("format", IMAGES)
def test_an_image_says_nothing_of_its_server(tmp_path: Path, format: str) -> None:
    written(tmp_path / "a", format, NOISE)
    with Image.open(tmp_path / "a") as image:
        image.load()
        assert not image.getexif()
        assert set(image.info) <= {
            "jfif",
            "jfif_version",
            "jfif_unit",
            "jfif_density",
            "loop",
            "background",
        } | {
            "timestamp",
            "duration",
        }
    assert written(tmp_path / "b", format, NOISE).bytes == (tmp_path / "a").stat().st_size
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("format", IMAGES)
@pytest.mark.parametrize(("num_frames", "error"), [(0, MediaError), (2, ValueError)])
def test_an_image_holds_one_frame(
    tmp_path: Path, format: str, num_frames: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"no frames were written|holds one frame"):
        written(tmp_path / "a", format, coloured(num_frames))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", IMAGES)
def test_images_that_cannot_be(tmp_path: Path, format: str) -> None:
    with pytest.raises(ValueError, match="quality is 101"):
        open_writer(tmp_path / "a", format, 64, 48, quality=101)
    with pytest.raises(ValueError, match="holds no sound"):
        open_writer(tmp_path / "a", format, 64, 48, sound=click(24_000, 8.0, 1, 0))
    with pytest.raises(MediaError, match="nowhere/a"):
        open_writer(tmp_path / "nowhere" / "a", format, 64, 48)
    with open_writer(tmp_path / "a", format, 64, 48) as writer:
        with pytest.raises(ValueError, match=r"expected uint8 \(n, 48, 64, 3\)"):
            writer.write(np.zeros((1, 64, 48, 3), np.uint8))
        writer.write(coloured(1))
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_its_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a\.webp: "):
        written(tmp_path / "a.webp", "webp", np.zeros((1, 2, 16384, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", IMAGES)
def test_an_image_that_cannot_take_its_name_leaves_nothing(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(MediaError, match=str(path)):
        written(path, format, NOISE)
    assert list(tmp_path.iterdir()) == [path]


# ---- names


def test_names() -> None:
    names = [file_name("video_1/decode/e-1", format) for format in FORMATS.values()]
    assert names == [f"video_1-decode-e-1.{end}" for end in ("mp4", "webm", "png", "jpg", "webp")]
    assert all(is_file_name(name) for name in names)
    bad = [
        "a.gif",
        "a.mp4.part",
        "a.mp4.claim",
        ".mp4",
        "a/b.mp4",
        "../a.png",
        "a.b.png",
        "a.png\n",
        "a.PNG",
        "",
    ]
    assert not any(is_file_name(name) for name in bad)


def test_the_formats_of_a_model() -> None:
    assert formats_of(Model()) == ["mp4", "webm"]
    assert formats_of(Model(output="image")) == ["png", "jpeg", "webp"]
    assert formats_of(Model(output="image", formats=["webp"])) == ["webp"]
