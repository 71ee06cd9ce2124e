"""A thumbnail or a contact sheet of a media file."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from typing import IO

import av
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image

THUMBNAIL_SIDE = 512  # pixels of the longer side, or fewer: nothing is enlarged
TILE_SIDE = 256
TILES = 16  # at most
QUALITY = 85
MAX_FRAME_PIXELS = 1 << 26
RENDER_SECONDS = 60.0


# By what a file says that it is: nothing else is tried on it.
IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}  # names of Pillow
VIDEOS = {"video/mp4": "mp4", "video/webm": "webm"}  # names of libav


def render(source: IO[bytes], content_type: str, variant: str, num_frames: int) -> bytes:
    """The encoded picture: for ``thumbnail`` the middle one of ``num_frames`` frames as WebP, otherwise up to
    16 of them, evenly spread, row by row in a JPEG of ``ceil(sqrt(n))`` columns. An image is its one frame.

    Raises ValueError for a file that is not of that type or takes longer than a minute.
    """
    if variant == "thumbnail":
        (image,) = _frames(source, content_type, [num_frames // 2], THUMBNAIL_SIDE)
        return _encoded(image, "WEBP")
    count = max(min(TILES, num_frames), 1)
    wanted = [index * (num_frames - 1) // max(count - 1, 1) for index in range(count)]
    return _encoded(_sheet(_frames(source, content_type, wanted, TILE_SIDE)), "JPEG")


def _frames(source: IO[bytes], content_type: str, wanted: Sequence[int], side: int) -> list[Image.Image]:
    if content_type in IMAGES:
        return [_image(source, IMAGES[content_type], side)]
    if content_type in VIDEOS:
        return _video_frames(source, VIDEOS[content_type], wanted, side)
    raise ValueError(f"it is {content_type}")


def _image(source: IO[bytes], format: str, side: int) -> Image.Image:
    try:
        with Image.open(source, formats=[format]) as image:
            if image.width * image.height > MAX_FRAME_PIXELS:
                raise ValueError("it is too large")
            small: Image.Image = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    small.thumbnail((side, side))
    return small


def _video_frames(source: IO[bytes], format: str, wanted: Sequence[int], side: int) -> list[Image.Image]:
    """Those of the frames with these indexes that are there, or else the last one."""
    deadline = time.monotonic() + RENDER_SECONDS
    found: list[Image.Image] = []
    last: VideoFrame | None = None
    try:
        with av.open(source, format=format) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_FRAME_PIXELS:
                raise ValueError("its frames are too large")
            stream.codec_context.thread_count = 1  # the machine has other work
            for index, frame in enumerate(container.decode(stream)):
                if time.monotonic() > deadline:
                    raise ValueError(f"it takes longer than {RENDER_SECONDS:.0f} s")
                last = frame
                if index in wanted:
                    found.append(_scaled(frame, side))
                if index >= wanted[-1]:
                    break
    except (FFmpegError, OSError) as error:  # libav also seeks where no file goes
        raise ValueError(str(error)) from error
    if last is None:
        raise ValueError("it has no frames")
    return found or [_scaled(last, side)]


def _scaled(frame: VideoFrame, side: int) -> Image.Image:
    scale = min(side / max(frame.width, frame.height), 1.0)
    width, height = (max(round(length * scale), 1) for length in (frame.width, frame.height))
    small = frame.reformat(width, height, "rgb24")
    plane = small.planes[0]
    return Image.frombytes("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size)


def _sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (column * width, row * height))
    return sheet


def _encoded(image: Image.Image, format: str) -> bytes:
    data = io.BytesIO()
    image.save(data, format, quality=QUALITY)
    return data.getvalue()
