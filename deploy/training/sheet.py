"""Contact sheets: some frames of each video in a row, under what it should show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from deploy.training.judge import Frames

SCALE = 2
GAP = 4  # pixels
TITLE = 14


def write(path: Path, videos: Sequence[Frames], titles: Sequence[str], shown: int) -> None:
    """A picture with a row for each video, of ``shown`` frames from its first to its last."""
    rows = []
    for video in videos:
        chosen = np.linspace(0, len(video) - 1, shown).round().astype(int)
        frames = [np.pad(frame, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for frame in video[chosen]]
        rows.append(np.concatenate(frames, axis=1))
    height, width = rows[0].shape[0] * SCALE, rows[0].shape[1] * SCALE
    picture = Image.new("RGB", (width, (height + TITLE + GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = number * (height + TITLE + GAP)
        draw.text((0, top), title, fill="black")
        enlarged = Image.fromarray(row).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (0, top + TITLE))
    picture.save(path)
