"""Equal buffers taken in turn, so many that the caches have forgotten one when its turn comes again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_BUFFERS = 1024
PAGE = 4096


@dataclass(frozen=True)
class Rotation:
    """`count` buffers of `nbytes`, each at the start of a page."""

    nbytes: int
    count: int

    @classmethod
    def over(cls, nbytes: int, cold_bytes: int) -> "Rotation":
        """Buffers of `nbytes` that together reach `cold_bytes`; at least two, at most `MAX_BUFFERS`."""
        return cls(nbytes, min(MAX_BUFFERS, max(2, -(-cold_bytes // nbytes))))

    @property
    def stride(self) -> int:
        return -(-self.nbytes // PAGE) * PAGE

    def pick(self, region: torch.Tensor, turn: int) -> torch.Tensor:
        """The buffer whose turn it is: a view of `nbytes` bytes of `region`."""
        start = turn % self.count * self.stride
        return region[start : start + self.nbytes]


def region(rotations: Sequence[Rotation]) -> torch.Tensor:
    """Memory (uint8) for each of `rotations`, one at a time; no two of its 8-byte words are equal."""
    nbytes = max(rotation.count * rotation.stride for rotation in rotations)
    return torch.arange(nbytes // 8, dtype=torch.int64).view(torch.uint8)


def view(tensor: torch.Tensor) -> memoryview:
    return tensor.numpy().data
