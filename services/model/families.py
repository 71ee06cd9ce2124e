"""The model families that are served: what each has of its own, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance

from services.model.folder import ServingDefaults
from services.model.streaming import decode_wan
from services.role import Role

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """What the one adapter does not find out by itself. ``Any`` is a modular pipeline."""

    name: str
    modular_pipeline: str  # its class in diffusers
    refuses: Callable[[Mapping[str, Any]], str]  # of a model's index: why it is not covered, or ""
    defaults: ServingDefaults
    negative_prompt: bool
    float32: frozenset[str]  # components that are never loaded in less
    embeddings: frozenset[str]  # inputs of the denoiser that take the dtype of its transformer
    multiples: Callable[[Any], tuple[int, int]]  # spatial (of width and height), temporal (of num_frames - 1)
    embedding_shapes: Callable[[Any], list[Shape]]  # all the encoder hands on
    latents_shape: Callable[[Any, int, int, int], Shape]  # for width, height, num_frames; float32
    guiders: Callable[[Role, float], dict[str, Any]]  # guider components for a guidance scale
    # Latents to chunks (1, 3, n, height, width) in [-1, 1].
    decode: Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]


WAN_TEXT_TOKENS = 512  # prompts are cut or padded to this


def _wan_refuses(index: Mapping[str, Any]) -> str:
    if index.get("boundary_ratio") is not None:
        return "it has two transformers (Wan 2.2 A14B)"
    if index.get("expand_timesteps"):
        return "it expands timesteps (Wan 2.2 TI2V 5B), which its modular pipeline does not"
    return ""


def _wan_multiples(pipeline: Any) -> tuple[int, int]:
    return pipeline.vae_scale_factor_spatial * pipeline.patch_size_spatial, pipeline.vae_scale_factor_temporal


def _wan_embedding_shapes(pipeline: Any) -> list[Shape]:
    return [(1, WAN_TEXT_TOKENS, pipeline.transformer.config.text_dim)] * 2


def _wan_latents_shape(pipeline: Any, width: int, height: int, num_frames: int) -> Shape:
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    frames = (num_frames - 1) // temporal + 1
    return (1, pipeline.num_channels_latents, frames, height // spatial, width // spatial)


def _wan_guiders(role: Role, guidance_scale: float) -> dict[str, Any]:
    if role is Role.ENCODER:
        # Both embeddings, whatever the scale: the encoder block fails when it leaves the negative ones out.
        return {"guider": ClassifierFreeGuidance(guidance_scale=5.0)}
    # As in WanPipeline no scale up to 1 is guidance; the guider itself would interpolate below 1.
    return {"guider": ClassifierFreeGuidance(guidance_scale=max(guidance_scale, 1.0))}


WAN = Family(
    name="wan",
    modular_pipeline="WanModularPipeline",
    refuses=_wan_refuses,
    defaults=ServingDefaults(
        width=832, height=480, num_frames=81, fps=16.0, num_inference_steps=50, guidance_scale=5.0
    ),
    negative_prompt=True,
    float32=frozenset({"vae"}),
    embeddings=frozenset({"prompt_embeds", "negative_prompt_embeds"}),
    multiples=_wan_multiples,
    embedding_shapes=_wan_embedding_shapes,
    latents_shape=_wan_latents_shape,
    guiders=_wan_guiders,
    decode=decode_wan,
)

FAMILIES: Mapping[str, Family] = {"WanPipeline": WAN}  # by the pipeline class that a model's index names
