"""HunyuanVideo 1.5: text to video, image to video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from services.model.families.family import Extent, ModularFamily, Spec, classifier_free_at_last
from services.model.folder import ServingDefaults


def _mend(blocks: Any) -> None:
    """In its first step image to video puts the zeros of text to video in the place of its embeddings."""
    from diffusers.modular_pipelines.hunyuan_video1_5.before_denoise import HunyuanVideo15PrepareLatentsStep

    class PrepareLatents(HunyuanVideo15PrepareLatentsStep):  # type: ignore[misc]
        @property
        def intermediate_outputs(self) -> list[Any]:
            return [output for output in super().intermediate_outputs if output.name != "image_embeds"]

    blocks.sub_blocks["denoise"].sub_blocks["image2video"].sub_blocks["prepare_latents"] = PrepareLatents()


def _multiples(pipeline: Any) -> tuple[int, int]:
    patch = pipeline.transformer.config.patch_size
    return pipeline.vae_scale_factor_spatial * patch, pipeline.vae_scale_factor_temporal


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    frames = (extent.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1
    return {"latents": _latent_frames(pipeline, extent, frames)}


def _latent_frames(pipeline: Any, extent: Extent, frames: int) -> Spec:
    spatial = pipeline.vae_scale_factor_spatial
    height, width = extent.height // spatial, extent.width // spatial
    return Spec((1, pipeline.num_channels_latents, frames, height, width), torch.float32)


def _texts(pipeline: Any, extent: Extent) -> list[Spec]:
    """Of the prompt and of the texts quoted in it, each with its mask; with guidance twice."""
    config = pipeline.transformer.config
    prompt, glyphs = pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length
    shapes = [
        (1, prompt, config.text_embed_dim),
        (1, prompt),
        (1, glyphs, config.text_embed_2_dim),
        (1, glyphs),
    ]
    return [Spec(shape) for shape in shapes] * 2


def _with_image(pipeline: Any, extent: Extent) -> list[Spec]:
    embeddings = Spec((1, pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim))
    return [*_texts(pipeline, extent), _latent_frames(pipeline, extent, 1), embeddings]


_TEXTS = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")

HUNYUAN_VIDEO_15 = ModularFamily(
    name="hunyuan-video-1.5",
    index_class="HunyuanVideo15Pipeline",
    modular_pipeline="HunyuanVideo15ModularPipeline",
    workflows=("text2video",),
    defaults=ServingDefaults(
        width=848, height=480, num_frames=121, fps=24.0, num_inference_steps=50, guidance_scale=6.0
    ),
    embeddings=frozenset(_TEXTS) | {f"negative_{name}" for name in _TEXTS} | {"image_embeds"},
    multiples=_multiples,
    encoded=_texts,
    latents=_latents,
    texts={"text_encoder": (-3,), "text_encoder_2": "last_hidden_state"},
    guiders=classifier_free_at_last,
)
HUNYUAN_VIDEO_15_I2V = replace(
    HUNYUAN_VIDEO_15,
    name="hunyuan-video-1.5-i2v",
    index_class="HunyuanVideo15ImageToVideoPipeline",
    workflows=("image2video",),
    images=(1, 1),
    mend=_mend,
    encoded=_with_image,
)

FAMILIES = (HUNYUAN_VIDEO_15, HUNYUAN_VIDEO_15_I2V)
