"""Writes one frame into a PNG, JPEG or WebP file."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from services.media.files import MediaError, PartFile
from services.media.writer import MediaFacts, check_frames

QUALITY = 95  # of lossy images, unless a request says otherwise


class ImageWriter:
    """Implements ``services.media.writer.Writer`` for exactly one frame. The file holds pixels alone: no
    names, dates or versions.
    """

    def __init__(self, path: Path, format: str, width: int, height: int, quality: int = 0) -> None:
        """``quality`` is from 1 to 100, 0 the default; PNG is lossless at any. Raises MediaError,
        ValueError.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality is {quality}, expected 1 to 100, or 0 for the default")
        self._options = _options(format, quality or QUALITY)
        self._width, self._height = width, height
        self._pixels: np.ndarray | None = None
        self._closed = False
        self._file = PartFile(path)

    def write(self, frames: np.ndarray) -> None:
        check_frames(frames, self._width, self._height)
        if len(frames) == 0:
            return
        if self._pixels is not None or len(frames) > 1:
            raise ValueError("an image holds one frame, found more")
        self._pixels = frames[0]

    def finish(self) -> MediaFacts:
        self._closed = True
        try:
            if self._pixels is None:
                raise MediaError(f"{self._file.path}: no frames were written")
            Image.fromarray(np.ascontiguousarray(self._pixels)).save(self._file.file, **self._options)
        except MediaError:
            self._file.discard()
            raise
        except (OSError, ValueError) as error:  # ValueError: sides that the format cannot hold
            self._file.discard()
            raise MediaError(f"{self._file.path}: {error}") from error
        return MediaFacts(self._file.publish(), self._width, self._height, num_frames=1)

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.discard()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _options(format: str, quality: int) -> dict[str, Any]:
    """Of Pillow's ``save``."""
    if format == "png":
        return {"format": "PNG"}
    if format == "jpeg":
        # Colours at full resolution: half of it shows at the edges of generated drawings and text.
        return {"format": "JPEG", "quality": quality, "subsampling": "4:4:4"}
    return {"format": "WEBP", "quality": quality}
