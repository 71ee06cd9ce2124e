"""Fused modular pipelines: what the split is held against, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL.Image import Image

from triptych_proto.control_pb2 import Generation


@dataclass
class Recording:
    """The pipeline's state behind the encoder's and the denoiser's blocks, and what came out."""

    encoded: dict[str, Any]
    denoised: dict[str, Any]
    frames: np.ndarray  # uint8 (n, height, width, 3)
    sound: np.ndarray | None  # float32 (channels, n)
    made: dict[str, Any]  # the whole state at the end


class Spy:
    """Stands where a block was, and looks at the state before and after it."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.guiders: Mapping[str, Any] = {}  # put in place before the block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, components: Any, state: Any) -> Any:
        self.before = dict(state.values)
        components.update_components(**self.guiders)
        result = self._block(components, state)
        self.after = dict(state.values)
        return result


class Fused:
    """A whole model in one process. Components named in ``float32`` are never loaded in less."""

    def __init__(
        self,
        folder: Path,
        pipeline_class: str,
        mend: Callable[[Any], None] | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        float32: Collection[str] = (),
    ) -> None:
        kind = getattr(diffusers, pipeline_class)
        blocks = getattr(diffusers, kind.default_blocks_name)()
        if mend is not None:
            mend(blocks)
        blocks.sub_blocks["denoise"] = self._spy = Spy(blocks.sub_blocks["denoise"])
        self.pipeline = kind(blocks=blocks, pretrained_model_name_or_path=str(folder))
        here = [name for name in self.pipeline.null_component_names if (folder / name).is_dir()]
        dtypes = {"default": dtype, **dict.fromkeys(float32, torch.float32)}
        self.pipeline.load_components(names=here, dtype=dtypes)
        self.pipeline.to(device)
        for loop in _loops(blocks.sub_blocks["denoise"]._block):
            loop.set_progress_bar_config(disable=True)
        self._scheduler = self.pipeline.scheduler

    def run(
        self,
        request: Generation,
        guiders: Mapping[str, Any],
        images: Sequence[Image] = (),
        schedule: Mapping[str, Any] | None = None,
        denoise_guiders: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Recording:
        """``schedule`` changes the scheduler's config; ``more`` are inputs that not all blocks have."""
        self.pipeline.update_components(**guiders)
        self._spy.guiders = denoise_guiders or {}
        kind = type(self._scheduler)
        self.pipeline.scheduler = kind.from_config(self._scheduler.config, **(schedule or {}))
        if images:
            more["image"] = images[0] if len(images) == 1 else list(images)
        inputs = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt or None,
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "frame_rate": request.fps,
            "num_inference_steps": request.num_inference_steps,
            **more,
        }
        asked = {parameter.name for parameter in self.pipeline._blocks.inputs}
        state = self.pipeline(
            **{name: value for name, value in inputs.items() if name in asked},
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
        )
        made = state.values["images"] if "images" in state.values else state.values["videos"][0]
        pixels = (np.asarray(made) * 255).round().astype(np.uint8)
        sound = state.values["audio"][0].float().cpu().numpy() if "audio" in state.values else None
        return Recording(self._spy.before, self._spy.after, pixels, sound, dict(state.values))


class FusedStandard:
    """A whole model in one process, by its standard pipeline, with an image by the one of the same name."""

    def __init__(
        self,
        folder: Path,
        pipeline_class: str,
        with_image: str,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        float32: Collection[str] = (),
    ) -> None:
        kind = getattr(diffusers, pipeline_class)
        dtypes = {"default": dtype, **dict.fromkeys(float32, torch.float32)}
        self._pipeline = kind.from_pretrained(folder, dtype=dtypes).to(device)
        config = {
            k: v for k, v in self._pipeline.config.items() if k in ("expand_timesteps", "boundary_ratio")
        }
        self._with_image = getattr(diffusers, with_image)(**self._pipeline.components, **config)
        for pipeline in (self._pipeline, self._with_image):
            pipeline.set_progress_bar_config(disable=True)
        self._scheduler = self._pipeline.scheduler

    def frames(
        self,
        request: Generation,
        images: Sequence[Image] = (),
        schedule: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> np.ndarray:
        """uint8 (n, height, width, 3)."""
        pipeline = self._with_image if images else self._pipeline
        pipeline.scheduler = type(self._scheduler).from_config(self._scheduler.config, **(schedule or {}))
        made = pipeline(
            **({"image": images[0]} if images else {}),
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **more,
        )
        pixels: np.ndarray = (made.frames[0] * 255).round().astype(np.uint8)
        return pixels


def _loops(block: Any) -> Any:
    if isinstance(block, diffusers.modular_pipelines.LoopSequentialPipelineBlocks):
        yield block
    for inner in getattr(block, "sub_blocks", {}).values():
        yield from _loops(inner)
