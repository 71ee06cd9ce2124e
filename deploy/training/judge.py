"""Says what a video shows, as a person would: which shape in which colour goes where, on which ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deploy.training.scenes import COLOURS, GROUNDS, Meaning

UNCLEAR = "unclear"
BORDER = 2  # pixels: shapes stay away from it
CONTRAST = 40.0  # in 8 bits: what differs less from the ground is ground
FAR = 100.0  # in 8-bit RGB: a colour so far from all known ones has no name
LEAST_AREA = 50.0  # pixels
MOVES = 6.0  # pixels from the first frame to the last; less is still
ASKEW = 0.5  # of the main direction's, the other's motion at most
# Of its bounding box a triangle fills 1/2, a circle pi/4, a square all.
TRIANGLE_FILLS = 0.65
CIRCLE_FILLS = 0.89

Frames = np.ndarray  # uint8 (n, height, width, 3)


class Found(NamedTuple):
    """What stands out from the ground."""

    colour: str
    ground: str
    masks: np.ndarray  # bool (n, height, width): where it is
    areas: np.ndarray  # (n,) in pixels; all zero if nothing stands out


def judge(frames: Frames) -> Meaning:
    """Names as in a prompt's meaning, or ``UNCLEAR``, which is also for a shape that comes or goes."""
    colour, ground, masks, areas = find(frames)
    if areas.min() < LEAST_AREA:
        return Meaning(colour, UNCLEAR, UNCLEAR, ground)
    return Meaning(colour, _shape(masks, areas), _motion(masks, areas), ground)


def find(frames: Frames) -> Found:
    """The colour's and the ground's names may be ``UNCLEAR``."""
    pixels = frames.astype(np.float32)
    edge = np.concatenate([pixels[:, :BORDER].reshape(-1, 3), pixels[:, -BORDER:].reshape(-1, 3)])
    back = np.median(edge, axis=0)
    ground = _nearest(back, GROUNDS)
    difference = pixels - back
    contrast = np.abs(difference).max(-1)
    strongest = np.quantile(contrast, 0.99)
    if strongest < CONTRAST:
        return Found(UNCLEAR, ground, np.zeros(contrast.shape, bool), np.zeros(len(frames)))
    front = np.median(pixels[contrast > 0.8 * strongest], axis=0)
    # How far each pixel is from the ground's colour to the shape's; half way is the shape's edge.
    way = front - back
    masks = _smooth(difference @ way / (way @ way) > 0.5)
    return Found(_nearest(front, COLOURS), ground, masks, masks.sum((1, 2)))


def centres(masks: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of mass in each frame: x and y, in pixels, (n,) each. Areas are at least 1."""
    _, height, width = masks.shape
    return masks.sum(1) @ np.arange(width) / areas, masks.sum(2) @ np.arange(height) / areas


def agreement(shown: Sequence[Meaning], meant: Sequence[Meaning]) -> Mapping[str, float]:
    """Which share of videos shows what was meant, for each property and for all of them together."""
    pairs = list(zip(shown, meant, strict=True))
    shares = {
        name: sum(getattr(seen, name) == getattr(told, name) for seen, told in pairs) / len(pairs)
        for name in Meaning._fields
    }
    return shares | {"all": sum(seen == told for seen, told in pairs) / len(pairs)}


def _nearest(colour: np.ndarray, named: Mapping[str, tuple[int, int, int]]) -> str:
    name, distance = min(
        ((name, float(np.linalg.norm(colour - np.array(rgb)))) for name, rgb in named.items()),
        key=lambda pair: pair[1],
    )
    return name if distance < FAR else UNCLEAR


def _smooth(masks: np.ndarray) -> np.ndarray:
    """Pixels of which most neighbours are set too: specks go. (n, height, width) bool."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    kept: np.ndarray = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] >= 5
    return kept


def _shape(masks: np.ndarray, areas: np.ndarray) -> str:
    height = _extent(masks.max(2))
    width = _extent(masks.max(1))
    fills = float(np.median(areas / (height * width)))
    return "triangle" if fills < TRIANGLE_FILLS else "circle" if fills < CIRCLE_FILLS else "square"


def _extent(hit: np.ndarray) -> np.ndarray:
    """From the first pixel that is hit to the last one, of each row of (n, length)."""
    length: np.ndarray = hit.shape[1] - hit.argmax(1) - hit[:, ::-1].argmax(1)
    return length


def _motion(masks: np.ndarray, areas: np.ndarray) -> str:
    n = len(masks)
    right, down = (float(np.polyfit(np.arange(n), place, 1)[0]) * (n - 1) for place in centres(masks, areas))
    if max(abs(right), abs(down)) < MOVES:
        return "still"
    if min(abs(right), abs(down)) > ASKEW * max(abs(right), abs(down)):
        return UNCLEAR
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"
