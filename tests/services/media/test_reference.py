"""Reference images in the encoder: all kinds come out upright and RGB, harmful ones name themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.media.reference import MAX_PIXELS, decode_all
from services.model.base import InvalidRequest
from tests import reference_images as made
from tests.reference_images import BLUE, GREEN, RED, encoded, picture, png

ROOT = Path(__file__).parents[3]


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    (image,) = decode_all([data], max_pixels)
    return image


def refuse(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_all([png(), data], max_pixels)
    assert str(caught.value).startswith("reference image 2 ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("JPEG", {"quality": 100, "progressive": True}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 100}),
    ],
)
def test_kinds(kind: str, options: dict[str, object]) -> None:
    image = decode(encoded(picture(GREEN), kind, **options))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    pixel = image.getpixel((3, 3))
    assert isinstance(pixel, tuple)
    assert all(abs(found - wanted) < 12 for found, wanted in zip(pixel, GREEN, strict=True))


def test_pixels_are_those_of_the_file() -> None:
    image = Image.effect_noise((31, 17), 90).convert("RGB")
    for data in (encoded(image), encoded(image, "WEBP", lossless=True)):
        assert decode(data).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I;16"])
def test_modes(mode: str) -> None:
    grey = Image.new("I;16", (8, 6), 0x8000) if mode == "I;16" else Image.new("L", (8, 6), 255).convert(mode)
    image = decode(encoded(grey, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == ((127,) * 3 if mode == "I;16" else (255,) * 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_white(kind: str) -> None:
    clear, half = picture((*RED, 0), mode="RGBA"), picture((0, 0, 0, 128), mode="RGBA")
    assert decode(encoded(clear, kind, lossless=True)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half, kind, lossless=True)).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (8, 6), 0)
    palette.putpalette([255, 0, 0] * 256)
    assert decode(encoded(palette, kind="PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation(kind: str) -> None:
    image = picture(RED)
    image.paste(BLUE, (0, 0, 4, 6))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera turned by a quarter
    upright = decode(encoded(image, kind, exif=exif, quality=100))
    assert upright.size == (6, 8)
    top, bottom = upright.getpixel((3, 1)), upright.getpixel((3, 6))
    assert isinstance(top, tuple) and isinstance(bottom, tuple)
    assert top[2] > 200 > bottom[2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_makes_no_sense_says_nothing() -> None:
    data = encoded(picture(RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense")
    assert decode(data).size == (8, 6)


def test_several_pictures_in_one_jpeg_are_a_photograph() -> None:
    data = encoded(picture(RED), "MPO", save_all=True, append_images=[picture(GREEN, (4, 3))])
    assert data[:2] == b"\xff\xd8"
    assert decode(data).size == (8, 6)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated(kind: str) -> None:
    assert "animated" in refuse(made.animated(kind))


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        SVG,
        b"%PDF-1.7\n",
        made.animated("GIF"),
        encoded(picture(), "BMP"),
        encoded(picture(), "TIFF"),
        encoded(picture(), "PPM"),
        encoded(picture(), "ICO"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\xff\xd8\xff" + bytes(100),
        b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(100),
        made.png_of(8, 6),
        made.png_of(0, 6),
    ],
)
def test_what_is_no_such_image(data: bytes) -> None:
    assert len(refuse(data)) < 300


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated(kind: str) -> None:
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    for length in (13, len(data) // 3, len(data) // 2, len(data) - 60):
        refuse(data[:length])


def test_one_pixel_too_many() -> None:
    assert decode(png(size=(10, 10)), 100).size == (10, 10)
    assert "11x10" in refuse(png(size=(11, 10)), 100)


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
)
def test_any_bytes_are_an_image_or_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(Image.linear_gradient("L").resize((40, 30)), kind))
    for place, value in changes:
        data[min(int(place * len(data)), len(data) - 1)] = value
    try:
        image = decode(bytes(data), 10_000)
    except InvalidRequest:
        return
    assert image.mode == "RGB" and image.width * image.height <= 10_000


BOMBS = {
    "header": lambda: made.png_of(60_000, 60_000, made.chunk(b"IDAT", b"x")),
    "largest": lambda: made.png_of(2**31 - 1, 2**31 - 1),
    "pixels": made.png_bomb,
    "text": made.text_bomb,
    "canvas": lambda: made.webp_canvas(16_000, 16_000),
    "largest canvas": lambda: made.webp_canvas(1 << 24, 1 << 8),
    "jpeg": lambda: jpeg_of(65_000, 65_000),
    "scans": made.scan_bomb,
}


def jpeg_of(width: int, height: int) -> bytes:
    """Its header says so."""
    data = bytearray(encoded(picture(size=(16, 16)), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


VICTIM = """
import resource, sys
from pathlib import Path
from services.media.reference import MAX_PIXELS, decode_all
from services.model.base import InvalidRequest
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        decode_all([data], MAX_PIXELS)
    except InvalidRequest as error:
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(after.ru_maxrss - before.ru_maxrss >> 10, error)
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    for name, bomb in BOMBS.items():
        (tmp_path / name).write_bytes(bomb())
        assert (tmp_path / name).stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, *(str(tmp_path / name) for name in BOMBS)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=60,
        check=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), lines
    for line in lines:
        grown, _, message = line.partition(" ")
        assert int(grown) < 32, line  # MiB
        assert message.startswith("reference image 1 ")
