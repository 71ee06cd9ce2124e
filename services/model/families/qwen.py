"""Qwen-Image: text to image, and image to image."""

from __future__ import annotations

from typing import Any

import torch

from services.model.families.family import Extent, ModularFamily, Spec, guider
from services.model.folder import ServingDefaults
from services.role import Role
from triptych_proto.control_pb2 import Generation


def _multiples(pipeline: Any) -> tuple[int, int]:
    return pipeline.vae_scale_factor * 2, 1


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    spatial = pipeline.vae_scale_factor
    shape = (1, pipeline.num_channels_latents, 1, extent.height // spatial, extent.width // spatial)
    return {"latents": Spec(shape)}


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    embeddings = Spec((1, extent.tokens, pipeline.transformer.config.joint_attention_dim))
    mask = Spec((1, extent.tokens), torch.int64)
    return [embeddings, mask] * 2 + list(_latents(pipeline, extent).values()) * extent.images


def _guiders(role: Role, generation: Generation) -> dict[str, Any]:
    scale = generation.guidance_scale
    return {"guider": guider(generation.true_cfg_scale if generation.HasField("true_cfg_scale") else scale)}


QWEN_IMAGE = ModularFamily(
    name="qwen-image",
    index_class="QwenImagePipeline",
    modular_pipeline="QwenImageModularPipeline",
    workflows=("text2image", "image2image"),
    defaults=ServingDefaults(
        width=1328, height=1328, num_frames=1, fps=1.0, num_inference_steps=50, guidance_scale=4.0
    ),
    output="image",
    images=(0, 1),
    batches=True,
    options=frozenset({"true_cfg_scale"}),
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    texts={"text_encoder": (-1,)},
    guiders=_guiders,
    padded={
        "prompt_embeds": "prompt_embeds_mask",
        "negative_prompt_embeds": "negative_prompt_embeds_mask",
    },
)

FAMILIES = (QWEN_IMAGE,)
