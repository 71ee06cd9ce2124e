"""FLUX.1: text to image, and image to image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.model.families.family import Extent, ModularFamily, Spec, no_guiders
from services.model.folder import ModelFolder, ServingDefaults


def _distilled(folder: ModelFolder) -> bool:
    return not folder.config("transformer").get("guidance_embeds", False)


def _multiples(pipeline: Any) -> tuple[int, int]:
    return pipeline.vae_scale_factor * 2, 1


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    spatial = pipeline.vae_scale_factor
    shape = (1, pipeline.num_channels_latents, extent.height // spatial, extent.width // spatial)
    return {"latents": Spec(shape)}


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    config = pipeline.transformer.config
    texts = [Spec((1, extent.tokens, config.joint_attention_dim)), Spec((1, config.pooled_projection_dim))]
    return texts + list(_latents(pipeline, extent).values()) * extent.images


FLUX = ModularFamily(
    name="flux",
    index_class="FluxPipeline",
    modular_pipeline="FluxModularPipeline",
    workflows=("text2image", "image2image"),
    defaults=ServingDefaults(
        width=1024, height=1024, num_frames=1, fps=1.0, num_inference_steps=28, guidance_scale=3.5
    ),
    output="image",
    images=(0, 1),
    batches=True,
    negative_prompt=False,
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    texts={"text_encoder": "pooler_output", "text_encoder_2": "last_hidden_state"},
    guiders=no_guiders,
    embeddings=frozenset({"prompt_embeds", "pooled_prompt_embeds"}),
)
FLUX_SCHNELL = replace(
    FLUX,
    name="flux-schnell",
    matches=_distilled,
    defaults=replace(FLUX.defaults, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256),
)

FAMILIES = (FLUX_SCHNELL, FLUX)
