"""What the fused diffusers pipeline makes of a request: the truth the split system is held against."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from diffusers import WanPipeline


@lru_cache(maxsize=1)
def fused(model: Path) -> Any:
    pipeline = WanPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def frames(
    model: Path,
    prompt: str,
    *,
    width: int,
    height: int,
    num_frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    negative_prompt: str | None = None,
) -> np.ndarray:
    """uint8 (num_frames, height, width, 3), computed with one thread, as the roles of the tests do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        output = fused(model)(
            prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        )
    finally:
        torch.set_num_threads(threads)
    return (output.frames[0] * 255).round().astype(np.uint8)


def checksum(video: np.ndarray) -> str:
    return f"{xxhash.xxh3_64_intdigest(np.ascontiguousarray(video).data):016x}"
