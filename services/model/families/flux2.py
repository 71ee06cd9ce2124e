"""FLUX.2 klein: text to image, with up to four reference images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.model.families.family import Extent, ModularFamily, Spec, classifier_free, no_guiders
from services.model.folder import ModelFolder, ServingDefaults

REFERENCE_PIXELS = 1024 * 1024  # larger reference images are made smaller


def _distilled(folder: ModelFolder) -> bool:
    return bool(folder.index.get("is_distilled"))


def _multiples(pipeline: Any) -> tuple[int, int]:
    return pipeline.vae_scale_factor * 2, 1


def _check_image(image: Any) -> None:
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    Flux2ImageProcessor.check_image_input(image)


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    side, _ = _multiples(pipeline)
    return {
        "latents": Spec((1, pipeline.num_channels_latents * 4, extent.height // side, extent.width // side))
    }


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    side, _ = _multiples(pipeline)
    text = Spec((1, extent.tokens, pipeline.transformer.config.joint_attention_dim))
    image = Spec((1, pipeline.num_channels_latents * 4, REFERENCE_PIXELS // side**2))
    return [text] * 2 + [image] * extent.images


FLUX2_KLEIN_BASE = ModularFamily(
    name="flux2-klein-base",
    index_class="Flux2KleinPipeline",
    modular_pipeline="Flux2KleinBaseModularPipeline",
    workflows=("text2image", "image_conditioned"),
    defaults=ServingDefaults(
        width=1024, height=1024, num_frames=1, fps=1.0, num_inference_steps=50, guidance_scale=4.0
    ),
    output="image",
    images=(0, 4),
    negative_prompt=False,
    check_image=_check_image,
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    texts={"text_encoder": (9, 18, 27)},
    guiders=classifier_free,
)
FLUX2_KLEIN = replace(
    FLUX2_KLEIN_BASE,
    name="flux2-klein",
    matches=_distilled,
    modular_pipeline="Flux2KleinModularPipeline",
    defaults=replace(FLUX2_KLEIN_BASE.defaults, num_inference_steps=4, guidance_scale=1.0),
    guiders=no_guiders,
)

FAMILIES = (FLUX2_KLEIN, FLUX2_KLEIN_BASE)
