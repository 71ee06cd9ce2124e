"""Wan 2.1 and 2.2: text to video, image to video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from services.model.families.family import (
    Extent,
    ModularFamily,
    Spec,
    classifier_free_at_last,
    guider,
)
from services.model.folder import ModelFolder, ServingDefaults
from services.model.streaming import decode_wan
from services.role import Role
from triptych_proto.control_pb2 import Generation

CLIP_TOKENS = 257  # of an image, in the encoder that all Wan 2.1 I2V models have


def _refuses_images(folder: ModelFolder) -> str:
    if folder.index.get("expand_timesteps"):
        return "it expands timesteps (Wan 2.2 TI2V 5B), which is served as a WanPipeline"
    if folder.config("transformer").get("pos_embed_seq_len"):
        return "it goes from a first frame to a last one (FLF2V)"
    return ""


def _two_transformers(folder: ModelFolder) -> bool:
    return folder.index.get("boundary_ratio") is not None


def _multiples(pipeline: Any) -> tuple[int, int]:
    return pipeline.vae_scale_factor_spatial * pipeline.patch_size_spatial, pipeline.vae_scale_factor_temporal


def _embeddings(pipeline: Any, extent: Extent) -> list[Spec]:
    return [Spec((1, extent.tokens, pipeline.transformer.config.text_dim))] * 2


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    return {"latents": Spec(_latents_shape(pipeline, extent, pipeline.num_channels_latents), torch.float32)}


def _latents_shape(pipeline: Any, extent: Extent, channels: int) -> tuple[int, ...]:
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    frames = (extent.num_frames - 1) // temporal + 1
    return (1, channels, frames, extent.height // spatial, extent.width // spatial)


def _with_image(pipeline: Any, extent: Extent) -> list[Spec]:
    """The encoded image behind a mask of as many channels as a latent frame has frames."""
    channels = pipeline.num_channels_latents + pipeline.vae_scale_factor_temporal
    condition = Spec(_latents_shape(pipeline, extent, channels), torch.float32)
    return [*_embeddings(pipeline, extent), condition]


def _with_embedded_image(pipeline: Any, extent: Extent) -> list[Spec]:
    return [*_with_image(pipeline, extent), Spec((1, CLIP_TOKENS, pipeline.transformer.config.image_dim))]


def _two_guiders(role: Role, generation: Generation) -> dict[str, Any]:
    second = generation.guidance_scale
    if generation.HasField("guidance_scale_2"):
        second = generation.guidance_scale_2
    return {**classifier_free_at_last(role, generation), "guider_2": guider(second)}


WAN = ModularFamily(
    name="wan",
    index_class="WanPipeline",
    modular_pipeline="WanModularPipeline",
    defaults=ServingDefaults(
        width=832, height=480, num_frames=81, fps=16.0, num_inference_steps=50, guidance_scale=5.0
    ),
    batches=True,
    float32=frozenset({"vae"}),
    multiples=_multiples,
    encoded=_embeddings,
    latents=_latents,
    texts={"text_encoder": "last_hidden_state"},
    guiders=classifier_free_at_last,
    stream=decode_wan,
)
WAN_22 = replace(
    WAN,
    name="wan2.2",
    matches=_two_transformers,
    modular_pipeline="Wan22ModularPipeline",
    defaults=replace(WAN.defaults, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0),
    guiders=_two_guiders,
)
WAN_I2V = replace(
    WAN,
    name="wan-i2v",
    index_class="WanImageToVideoPipeline",
    modular_pipeline="WanImage2VideoModularPipeline",
    refuses=_refuses_images,
    workflows=("image2video",),
    images=(1, 1),
    keeps_aspect=True,
    encoded=_with_embedded_image,
)
WAN_22_I2V = replace(
    WAN_I2V,
    name="wan2.2-i2v",
    matches=_two_transformers,
    modular_pipeline="Wan22Image2VideoModularPipeline",
    workflows=(),
    defaults=replace(WAN_22.defaults, guidance_scale=3.5, guidance_scale_2=3.5),
    encoded=_with_image,
    guiders=_two_guiders,
)

# The first that matches a model is its family.
FAMILIES = (WAN_22, WAN, WAN_22_I2V, WAN_I2V)
