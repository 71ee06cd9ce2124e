"""Prompts that training never saw, through the whole pipeline, before the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.training import scenes, sheet, words
from deploy.training.judge import Frames, agreement, judge
from deploy.training.log import Log

# Steps and guidance scales; the first is the default of requests to the model.
CELLS = ((6, 1.5), (4, 1.5), (5, 1.5), (8, 1.5), (10, 1.5), (30, 1.5), (6, 1.0), (6, 2.0), (6, 5.0))
SEEDS = (0, 1, 2)
ON_SHEET = 8
FRAMES_ON_SHEET = 4


def evaluate(folder: Path, device: torch.device, count: int, seed: int, picture: Path, log: Log) -> None:
    """Logs the share of right properties for each of CELLS, over ``count`` prompts with each of SEEDS.

    ``picture`` gets some videos of the first cell, the metrics what is wrong in it.
    """
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    asked = [each for each in words.unseen_captions(seed)[:count] for _ in SEEDS]
    seeds = [each for _ in range(len(asked) // len(SEEDS)) for each in SEEDS]
    for steps, guidance in CELLS:
        videos = generate(pipeline, [prompt for _, prompt in asked], seeds, steps, guidance)
        shown = [judge(video) for video in videos]
        log("cell", steps=steps, guidance=guidance, **agreement(shown, [meaning for meaning, _ in asked]))
        if (steps, guidance) == CELLS[0]:
            step = max(len(asked) // ON_SHEET, 1)
            chosen = slice(0, ON_SHEET * step, step)
            prompts = [prompt for _, prompt in asked[chosen]]
            sheet.write(picture, videos[chosen], prompts, FRAMES_ON_SHEET)
            for (meaning, prompt), found, each in zip(asked, shown, seeds, strict=True):
                if found != meaning:
                    log("wrong", prompt=prompt, seed=each, meant=meaning, shown=found)


def generate(
    pipeline: Any, prompts: list[str], seeds: list[int], steps: int, guidance: float
) -> list[Frames]:
    """A video for each prompt and seed."""
    videos = pipeline(
        prompt=prompts,
        height=scenes.SIZE,
        width=scenes.SIZE,
        num_frames=scenes.FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).frames
    return [(video * 255).round().astype(np.uint8) for video in videos]
