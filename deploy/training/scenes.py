"""Scenes that the demo model learns to draw: a coloured shape that moves, or not, over a plain ground."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import torch

SIZE = 64  # pixels, both ways
FRAMES = 17
FPS = 8

# 8-bit RGB of what prompts call by these names.
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 50),
    "white": (246, 246, 246),
}
GROUNDS = {"dark": (20, 22, 32), "light": (176, 181, 190)}
SHAPES = ("circle", "square", "triangle")
# Pixels right and down, in units of the speed.
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}

# What prompts leave open. Any shape is seen whole, from the first frame to the last.
RADII = (8.0, 13.0)  # pixels
SPEEDS = (1.0, 1.7)  # pixels a frame
MARGIN = 2.0
SQUARE_HALF = 0.9  # half a side, in radii
TRIANGLE = 1.3  # from its centre of mass to a corner, in radii
REACH = TRIANGLE * 3**0.5 / 2  # of the widest shape from its middle, in radii


class Meaning(NamedTuple):
    """What a prompt can say of a scene, by name."""

    colour: str
    shape: str
    motion: str
    ground: str


MEANINGS = tuple(Meaning(*names) for names in product(COLOURS, SHAPES, MOTIONS, GROUNDS))


def held_out(meaning: Meaning) -> bool:
    """Whether training never shows this combination: every fifth.

    One motion for each colour, shape and ground, so that training shows all pairs of properties.
    """
    colour, shape = tuple(COLOURS).index(meaning.colour), SHAPES.index(meaning.shape)
    motion, ground = tuple(MOTIONS).index(meaning.motion), tuple(GROUNDS).index(meaning.ground)
    return (colour + shape + motion + 2 * ground) % 5 == 0


TRAINING = tuple(index for index, meaning in enumerate(MEANINGS) if not held_out(meaning))
HELD_OUT = tuple(index for index, meaning in enumerate(MEANINGS) if held_out(meaning))


@dataclass(frozen=True)
class Scenes:
    """n scenes. Tensors of shape (n,), on one device; positions in pixels from the upper left corner."""

    meaning: torch.Tensor  # int64, into MEANINGS
    x: torch.Tensor  # float32: the shape's middle in the first frame
    y: torch.Tensor
    radius: torch.Tensor
    speed: torch.Tensor

    def __len__(self) -> int:
        return len(self.meaning)


def random_scenes(count: int, meanings: Sequence[int], generator: torch.Generator) -> Scenes:
    """``count`` scenes on the generator's device: one of ``meanings`` (into MEANINGS), all else by chance."""
    device = generator.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    choice = torch.randint(len(meanings), (count,), generator=generator, device=device)
    meaning = torch.tensor(meanings, device=device)[choice]
    radius, speed = uniform(*RADII), uniform(*SPEEDS)
    starts = [low + (high - low) * uniform(0.0, 1.0) for low, high in room(meaning, radius, speed)]
    return Scenes(meaning, starts[0], starts[1], radius, speed)


def room(
    meaning: torch.Tensor, radius: torch.Tensor, speed: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Where the shape's middle may be in the first frame: least and most, of x and of y. All are (n,)."""
    reach = REACH * radius + MARGIN
    found = []
    for way in _looks(meaning.device).way[meaning].unbind(1):
        travel = (FRAMES - 1) * speed * way
        found.append((reach - travel.clamp(max=0), SIZE - reach - travel.clamp(min=0)))
    return found


def draw(scenes: Scenes, first: int = 0, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    """``frames`` frames from number ``first`` on: pixels (n, 3, frames, SIZE, SIZE) in [-1, 1], float32,
    and how much of each the shape covers (n, 1, frames, SIZE, SIZE), 0 to 1: edges are smooth.
    """
    device = scenes.meaning.device
    looks = _looks(device)
    ways = looks.way[scenes.meaning]
    times = torch.arange(first, first + frames, device=device)
    travel = scenes.speed[:, None] * times  # (n, frames)
    pixels = torch.arange(SIZE, device=device) + 0.5
    x = pixels - (scenes.x[:, None] + ways[:, :1] * travel)[..., None]  # (n, frames, SIZE)
    y = pixels - (scenes.y[:, None] + ways[:, 1:] * travel)[..., None]
    outside = _distance(looks.kind[scenes.meaning], scenes.radius, x[..., None, :], y[..., :, None])
    cover = (0.5 - outside).clamp(0, 1)[:, None]

    shape, ground = (table[scenes.meaning][:, :, None, None, None] for table in (looks.colour, looks.ground))
    return ground + (shape - ground) * cover, cover


def _distance(kind: torch.Tensor, radius: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pixels from each shape's edge, negative inside; near enough where it matters, at the edge.

    ``kind`` (into SHAPES) and ``radius`` are (n,); ``x`` (n, frames, 1, SIZE) and ``y``
    (n, frames, SIZE, 1) are from the shape's middle.
    """
    kind, radius = kind[:, None, None, None], radius[:, None, None, None]
    circle = (x.square() + y.square()).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - SQUARE_HALF * radius
    # Its middle is that of its bounding box; a corner is up.
    low = y - TRIANGLE / 4 * radius
    triangle = torch.maximum(low, 3**0.5 / 2 * x.abs() - low / 2) - TRIANGLE / 2 * radius
    return torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))


class _Looks(NamedTuple):
    """By the meaning's number."""

    colour: torch.Tensor  # (meanings, 3) in [-1, 1]
    ground: torch.Tensor
    way: torch.Tensor  # (meanings, 2)
    kind: torch.Tensor  # (meanings,) int64


@cache
def _looks(device: torch.device) -> _Looks:
    def table(rows: Iterable[tuple[int, ...]]) -> torch.Tensor:
        return torch.tensor(list(rows), dtype=torch.float32, device=device)

    return _Looks(
        table(COLOURS[each.colour] for each in MEANINGS) / 127.5 - 1,
        table(GROUNDS[each.ground] for each in MEANINGS) / 127.5 - 1,
        table(MOTIONS[each.motion] for each in MEANINGS),
        torch.tensor([SHAPES.index(each.shape) for each in MEANINGS], device=device),
    )
