"""Runs of the three roles, and of the fused pipelines they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, WanModularPipeline, WanPipeline

from services.model import open_model
from services.model.base import Cancelled, Value
from services.role import Role
from triptych_proto.control_pb2 import Generation

OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1}


@dataclass
class Recorder:
    """A control that notes progress; cancels once ``cancel_after`` steps are done."""

    cancel_after: int | None = None
    steps: list[tuple[int, int]] = field(default_factory=list)

    def progress(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def raise_if_cancelled(self) -> None:
        if self.cancel_after is not None and len(self.steps) >= self.cancel_after:
            raise Cancelled


class Roles:
    """Three models that know nothing of each other."""

    def __init__(self, folder: Path, dtype: str = "auto") -> None:
        self.encoder, self.denoiser, self.decoder = (
            open_model(role, str(folder), dtype=dtype, **OPTIONS) for role in Role
        )

    def latents(self, generation: Generation) -> dict[str, Value]:
        embeddings = self.encoder.run(generation, {}, Recorder())
        return self.denoiser.run(generation, embeddings, Recorder())

    def frames(self, generation: Generation) -> np.ndarray:
        return self.decoded(generation, self.latents(generation))

    def decoded(self, generation: Generation, values: Mapping[str, Value]) -> np.ndarray:
        return np.concatenate(list(self.decoder.decode(generation, values, Recorder()).frames))


def generation(**fields: Any) -> Generation:
    """A small request."""
    request = Generation(
        prompt="a red circle moving right",
        width=64,
        height=64,
        num_frames=5,
        fps=8,
        num_inference_steps=3,
        guidance_scale=5.0,
        seed=7,
    )
    for name, value in fields.items():
        setattr(request, name, value)  # zeros too, which a merge would leave out
    return request


def fused_pipeline(folder: Path) -> Any:
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """As diffusers makes pictures of numbers in [0, 1]."""
    pixels: np.ndarray = (frames * 255).round().astype(np.uint8)
    return pixels


def fused_frames(pipeline: Any, request: Generation, **changes: Any) -> np.ndarray:
    """uint8 (num_frames, height, width, 3) by ``WanPipeline``."""
    arguments = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        **changes,
    }
    generator = torch.Generator("cpu").manual_seed(request.seed)
    frames: np.ndarray = pipeline(**arguments, generator=generator, output_type="np").frames[0]
    return to_pixels(frames)


def modular_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    pipeline = WanModularPipeline(pretrained_model_name_or_path=str(folder))
    pipeline.load_components(dtype={"default": dtype, "vae": torch.float32})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modular_frames(pipeline: Any, request: Generation) -> np.ndarray:
    """uint8 (num_frames, height, width, 3) by ``WanModularPipeline``; it cannot do without guidance."""
    pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=request.guidance_scale))
    videos: np.ndarray = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output="videos",
    )
    return to_pixels(videos[0])
