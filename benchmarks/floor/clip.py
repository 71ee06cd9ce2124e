"""What the floor's videos are like: their size and how many frames they have."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

FPS = 8  # of all of them


@dataclass(frozen=True)
class Clip:
    """``width`` and ``height`` are even pixels."""

    width: int = 16
    height: int = 16
    frames: int = 1

    @staticmethod
    def of(fields: dict[str, Any]) -> Clip:
        """What a request asks for."""
        width, _, height = fields["size"].partition("x")
        return Clip(int(width), int(height), fields["num_frames"])

    def words(self) -> list[str]:
        """For a command line."""
        return [str(number) for number in astuple(self)]


TINY_CLIP = Clip()
