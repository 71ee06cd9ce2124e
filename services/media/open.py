"""Begins media files of all formats."""

from __future__ import annotations

from pathlib import Path

from services.media.encoders import VP9, X264, VideoEncoder
from services.media.formats import FORMATS, IMAGE
from services.media.image import ImageWriter
from services.media.video import VideoWriter
from services.media.writer import Writer
from services.model.base import Sound


def open_writer(
    path: Path,
    format: str,
    width: int,
    height: int,
    fps: float = 0.0,
    *,
    sound: Sound | None = None,
    quality: int = 0,
    encoder: VideoEncoder = X264,
) -> Writer:
    """Begins the file ``path`` in one of ``FORMATS``; it appears there when it is whole.

    ``fps`` and ``sound`` are for videos, ``quality`` (1 to 100, 0: the default) for lossy images, ``encoder``
    for MP4. Raises MediaError when the file cannot be made, ValueError for what the format cannot hold.
    """
    if FORMATS[format].output == IMAGE:
        if sound is not None:
            raise ValueError(f"{format} holds no sound")
        return ImageWriter(path, format, width, height, quality)
    chosen = encoder if format == "mp4" else VP9
    return VideoWriter(path, width, height, fps, container=format, sound=sound, encoder=chosen)
