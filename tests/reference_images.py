"""Reference images for tests: good ones of every kind, and files made to do harm."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png(colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 6)) -> bytes:
    return encoded(picture(colour, size))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says so, with these chunks behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_bomb(width: int = 9_000, height: int = 9_000) -> bytes:
    """A true PNG of so many black pixels, a thousandth of their size."""
    packer = zlib.compressobj(1)
    rows = bytes(3 * width + 1)
    data = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    return png_of(width, height, chunk(b"IDAT", data))


def text_bomb() -> bytes:
    """A small picture with a comment that unpacks to 256 MiB."""
    packer = zlib.compressobj(1)
    text = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    pixels = chunk(b"IDAT", zlib.compress(bytes(3 * 8 + 1) * 6))
    return png_of(8, 6, chunk(b"zTXt", b"Comment\0\0" + text), pixels)


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP file whose header asks for this canvas, and which has a pixel."""
    frame = encoded(picture(size=(1, 1)), "WEBP", lossless=True)[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def scan_bomb(scans: int = 5000) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encoded(picture(size=(64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def animated(kind: str) -> bytes:
    return encoded(
        picture(RED), kind, save_all=True, append_images=[picture(GREEN), picture(BLUE)], duration=50
    )
