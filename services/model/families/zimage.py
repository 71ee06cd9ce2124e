"""Z-Image: text to image, and image to image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from services.model.families.family import Extent, ModularFamily, Spec, guider
from services.model.folder import ModelFolder, ServingDefaults
from services.role import Role
from triptych_proto.control_pb2 import Generation


def _few_steps(folder: ModelFolder) -> bool:
    """Turbo's folder differs from the other's in its schedule alone."""
    return folder.config("scheduler").get("shift") == 3.0


def _multiples(pipeline: Any) -> tuple[int, int]:
    return max(pipeline.vae_scale_factor_spatial, 2 * pipeline.vae_scale_factor), 1


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    spatial = pipeline.vae_scale_factor
    shape = (1, pipeline.num_channels_latents, extent.height // spatial, extent.width // spatial)
    return {"latents": Spec(shape, torch.float32)}


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    text = Spec((extent.tokens, pipeline.transformer.config.cap_feat_dim))
    return [text] * 2 + list(_latents(pipeline, extent).values()) * extent.images


def _guiders(role: Role, generation: Generation) -> dict[str, Any]:
    # Z-Image counts from the conditioned prediction, the guider from the other; 0 is no guidance.
    return {"guider": guider(generation.guidance_scale + 1.0)}


Z_IMAGE = ModularFamily(
    name="z-image",
    index_class="ZImagePipeline",
    modular_pipeline="ZImageModularPipeline",
    workflows=("text2image", "image2image"),
    defaults=ServingDefaults(
        width=1024, height=1024, num_frames=1, fps=1.0, num_inference_steps=50, guidance_scale=5.0
    ),
    output="image",
    images=(0, 1),
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    texts={"text_encoder": (-2,)},
    guiders=_guiders,
)
Z_IMAGE_TURBO = replace(
    Z_IMAGE,
    name="z-image-turbo",
    matches=_few_steps,
    defaults=replace(Z_IMAGE.defaults, num_inference_steps=9, guidance_scale=0.0),
)

FAMILIES = (Z_IMAGE_TURBO, Z_IMAGE)
