"""A media file in the making, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class MediaFacts:
    """What lies on the disk."""

    bytes: int
    width: int
    height: int
    num_frames: int
    fps: float = 0.0  # 0: an image
    audio_rate: int = 0  # samples per second; 0: silent


class Writer(Protocol):
    """A media file in the making. Used by one thread at a time; as a context manager it aborts unless
    finished.
    """

    def write(self, frames: np.ndarray) -> None:
        """Appends uint8 (n, height, width, 3), not to be changed afterwards.

        Waits while encoding is behind; MediaError if it failed, ValueError for frames of another kind.
        """

    def finish(self) -> MediaFacts:
        """Waits until the file is complete and on the disk. MediaError if not; then nothing is left of it."""
        ...

    def abort(self) -> None:
        """Gives up and removes the partial file. Does nothing after ``finish``."""

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_frames(frames: np.ndarray, width: int, height: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}, expected uint8 (n, {height}, {width}, 3)"
        )
