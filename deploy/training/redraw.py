"""The scene that a video means: what it shows is drawn anew, in the right colours and with sharp edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from deploy.training import scenes
from deploy.training.judge import Frames, centres, find, judge
from deploy.training.scenes import MEANINGS, MOTIONS, Meaning, Scenes

# A shape's area in pixels, in squares of its radius.
AREAS = {
    "circle": math.pi,
    "square": (2 * scenes.SQUARE_HALF) ** 2,
    "triangle": 3 * 3**0.5 / 4 * scenes.TRIANGLE**2,
}


def near(frames: Frames, meaning: Meaning) -> bool:
    """Whether a video may stand for a scene of that meaning: all but its shape is as it should be."""
    return judge(frames)._replace(shape=meaning.shape) == meaning


def nearest(videos: Sequence[Frames], numbers: Sequence[int], device: torch.device) -> Scenes:
    """Scenes of those meanings (into MEANINGS) with the place, size and speed that videos which are ``near``
    to them show, as far as training's scenes go.
    """
    measured = [_measure(video, MEANINGS[number]) for video, number in zip(videos, numbers, strict=True)]
    x, y, radius, speed = torch.tensor(measured, dtype=torch.float32, device=device).view(-1, 4).unbind(1)
    meaning = torch.tensor(numbers, dtype=torch.int64, device=device)
    (left, right), (top, bottom) = scenes.room(meaning, radius, speed)
    return Scenes(meaning, x.clamp(left, right), y.clamp(top, bottom), radius, speed)


def _measure(frames: Frames, meaning: Meaning) -> tuple[float, float, float, float]:
    """Of a scene: x, y, radius, speed."""
    _, _, masks, areas = find(frames)
    radius = float(np.clip(np.sqrt(np.median(areas) / AREAS[meaning.shape]), *scenes.RADII))
    places = centres(masks, areas)
    way = MOTIONS[meaning.motion]
    last = len(frames) - 1
    steps = [float(np.polyfit(np.arange(last + 1), place, 1)[0]) for place in places]
    speed = float(np.clip(steps[0] * way[0] + steps[1] * way[1], *scenes.SPEEDS))
    # Pixels are counted at their middles. A triangle's centre of mass is below that of its bounding box.
    x, y = (
        float(place.mean()) + 0.5 - speed * ways * last / 2 for place, ways in zip(places, way, strict=True)
    )
    return x, y - (scenes.TRIANGLE / 4 * radius if meaning.shape == "triangle" else 0.0), radius, speed
