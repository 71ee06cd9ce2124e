"""Reference images as clients send them: PNG, JPEG or WebP by content, decoded to upright RGB.

Nobody has looked into these bytes before. Sizes are checked before any pixel is decoded, so that a small file
cannot take much memory or time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageOps, UnidentifiedImageError

from services.model.base import InvalidRequest

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 1 << 25  # of one image, where nothing else is said: 100 MB as RGB
# Of a JPEG, each of which takes as long as a whole picture. Progressive ones have about ten.
MAX_SCANS = 100
BACKGROUND = (255, 255, 255)  # behind transparent pixels

_START_OF_SCAN = b"\xff\xda"  # inside a scan, FF is never followed by DA


def decode_all(files: Sequence[bytes], max_pixels: int) -> list[Image.Image]:
    """Each as RGB, with the orientation of its EXIF applied and transparency on white.

    Raises InvalidRequest that names the image, counted from 1.
    """
    return [_decode(data, f"reference image {number}", max_pixels) for number, data in enumerate(files, 1)]


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    _check_canvas(data, name, max_pixels)
    if data.startswith(b"\xff\xd8") and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise InvalidRequest(f"{name} is a JPEG of more than {MAX_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, name, max_pixels)
            # JPEGs of several pictures are single photographs with previews or gain maps beside them.
            if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                raise InvalidRequest(f"{name} is animated, expected a single picture")
            image.load()
            return _flat(_upright(image))
    except (InvalidRequest, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InvalidRequest(f"{name} is not a PNG, JPEG or WebP file, or its header is broken") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"{name} has more than {max_pixels} pixels") from None
    except Exception as error:  # Pillow fails in many ways on bytes that make no sense
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InvalidRequest(f"{name} is broken: {reason}") from None


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidRequest(f"{name} has {width}x{height} pixels, expected at most {max_pixels}")


def _check_canvas(data: bytes, name: str, max_pixels: int) -> None:
    """The canvas of an extended WebP file, for which its decoder takes memory as soon as it is opened."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        sides = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        _check_pixels((next(sides), next(sides)), name, max_pixels)
    elif data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        _check_pixels(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), name, max_pixels)
    elif data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and len(data) >= 30:
        sides = (int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (26, 28))
        _check_pixels((next(sides), next(sides)), name, max_pixels)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        return image  # EXIF that makes no sense says nothing


def _flat(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):  # 16 bits of grey, which a conversion would clip
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, BACKGROUND)
    flat.paste(image, mask=image)
    return flat
