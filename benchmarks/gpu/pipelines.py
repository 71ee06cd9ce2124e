"""diffusers' own two pipelines for Wan, called alike; each is a whole model in one process.

The roles run the blocks of the modular one, and promise to make the same bits. The standard one is what most
programs use; in bfloat16 it rounds in other places, and makes other bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, WanModularPipeline, WanPipeline

from services.model.steps import loops


class Whole(Protocol):
    """A pipeline and how to call it."""

    pipeline: Any  # with text_encoder, transformer and vae

    def frames(self, fields: Mapping[str, Any]) -> np.ndarray:
        """Of a request as ``Work.fields`` says it: (n, height, width, 3) in [0, 1]."""
        ...


class Modular:
    """Blocks that read and write one state."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.pipeline: Any = WanModularPipeline(pretrained_model_name_or_path=str(folder))
        self.pipeline.load_components(dtype=_dtypes(dtype))
        self.pipeline.to(device)
        for loop in loops(self.pipeline._blocks):
            loop.set_progress_bar_config(disable=True)

    def frames(self, fields: Mapping[str, Any]) -> np.ndarray:
        guider = ClassifierFreeGuidance(guidance_scale=fields["guidance_scale"])
        self.pipeline.update_components(guider=guider)
        frames: np.ndarray = self.pipeline(**_arguments(fields), output="videos")[0]
        return frames


class Standard:
    """One function from texts to frames."""

    def __init__(self, pipeline: WanPipeline) -> None:
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Standard:
        return cls(WanPipeline.from_pretrained(folder, dtype=_dtypes(dtype)).to(device))

    @classmethod
    def of(cls, modular: Modular) -> Standard:
        """Of the same modules in memory."""
        names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
        return cls(WanPipeline(**{name: getattr(modular.pipeline, name) for name in names}))

    def frames(self, fields: Mapping[str, Any]) -> np.ndarray:
        scale = fields["guidance_scale"]
        frames: np.ndarray = self.pipeline(**_arguments(fields), guidance_scale=scale).frames[0]
        return frames


def _dtypes(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """As the model's documentation advises, and as the roles have it."""
    return {"default": dtype, "vae": torch.float32}


def _arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    width, height = (int(side) for side in fields["size"].split("x"))
    return {
        "width": width,
        "height": height,
        "generator": torch.Generator("cpu").manual_seed(fields["seed"]),
        "output_type": "np",
        **{name: fields[name] for name in ("prompt", "negative_prompt", "num_frames", "num_inference_steps")},
    }
