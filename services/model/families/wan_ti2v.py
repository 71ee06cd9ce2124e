"""Wan 2.2 TI2V 5B: text, and perhaps an image, to video. Its Modular blocks do not expand timesteps."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from PIL.Image import Image

from services.model.base import Value
from services.model.families.family import Extent, Generators, Spec, StandardFamily, StepEnd
from services.model.folder import ModelFolder, ServingDefaults
from services.model.streaming import decode_wan
from services.role import Role
from triptych_proto.control_pb2 import Generation

CONDITION = "image_condition_latents"


@functools.cache
def _from_condition() -> Any:
    """``WanImageToVideoPipeline`` for an image that has been encoded elsewhere, in ``condition``."""
    from diffusers import WanImageToVideoPipeline, WanPipeline

    class FromCondition(WanImageToVideoPipeline):  # type: ignore[misc]
        condition: torch.Tensor | None = None

        def prepare_latents(self, image: torch.Tensor, *arguments: Any) -> Any:
            """``image`` only stands in: noise as for any video, and a mask for the frame that is given."""
            noise = WanPipeline.prepare_latents(self, *arguments[:-1])
            mask = torch.ones_like(noise[:, :1])
            mask[:, :, 0] = 0
            return noise, self.condition, mask

    return FromCondition


def _expands_timesteps(folder: ModelFolder) -> bool:
    return bool(folder.index.get("expand_timesteps"))


def _guided(generation: Generation) -> bool:
    return generation.guidance_scale > 1


def _crossing(generation: Generation) -> Mapping[str, bool]:
    negative = {"negative_prompt_embeds": True} if _guided(generation) else {}
    return {"prompt_embeds": True, **negative, CONDITION: False}


def _encode(pipeline: Any, generation: Generation, images: Sequence[Image], tokens: int) -> dict[str, Value]:
    prompt_embeds, negative_prompt_embeds = pipeline.encode_prompt(
        generation.prompt,
        generation.negative_prompt or None,
        do_classifier_free_guidance=_guided(generation),
        max_sequence_length=tokens,
    )
    values: dict[str, Value] = {"prompt_embeds": prompt_embeds}
    if _guided(generation):
        values["negative_prompt_embeds"] = negative_prompt_embeds
    if images:
        values[CONDITION] = _encoded_image(pipeline, generation, images[0])
    return values


def _encoded_image(pipeline: Any, generation: Generation, image: Image) -> torch.Tensor:
    from diffusers import WanImageToVideoPipeline

    size = {"height": generation.height, "width": generation.width}
    device = pipeline.vae.device
    pixels = pipeline.video_processor.preprocess(image, **size).to(device, torch.float32)
    _, condition, _ = WanImageToVideoPipeline.prepare_latents(
        pipeline,
        pixels,
        batch_size=1,
        **size,
        num_frames=generation.num_frames,
        dtype=torch.float32,
        device=device,
        latents=torch.empty(0),  # noise is drawn by the denoiser
    )
    return cast("torch.Tensor", condition)


def _denoise(
    pipeline: Any,
    generation: Generation,
    values: Mapping[str, Value],
    generators: Generators,
    step_end: StepEnd,
) -> dict[str, Value]:
    arguments = {
        "prompt_embeds": values["prompt_embeds"],
        "negative_prompt_embeds": values.get("negative_prompt_embeds"),
        "height": generation.height,
        "width": generation.width,
        "num_frames": generation.num_frames,
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
        "generator": generators,
        "output_type": "latent",
        "return_dict": False,
        "callback_on_step_end": step_end,
    }
    condition = values.get(CONDITION)
    if isinstance(condition, torch.Tensor):
        conditioned = _from_condition()(**pipeline.components, expand_timesteps=True)
        conditioned.set_progress_bar_config(disable=True)
        conditioned.condition = condition
        stand_in = torch.zeros(1, 3, generation.height, generation.width)
        return {"latents": conditioned(image=stand_in, **arguments)[0]}
    return {"latents": pipeline(**arguments)[0]}


def _multiples(pipeline: Any) -> tuple[int, int]:
    patch = pipeline.transformer.config.patch_size[1]
    return pipeline.vae_scale_factor_spatial * patch, pipeline.vae_scale_factor_temporal


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    frames = (extent.num_frames - 1) // temporal + 1
    shape = (1, pipeline.vae.config.z_dim, frames, extent.height // spatial, extent.width // spatial)
    return {"latents": Spec(shape, torch.float32)}


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    embeddings = Spec((1, extent.tokens, pipeline.transformer.config.text_dim))
    (batch, channels, _, height, width) = _latents(pipeline, extent)["latents"].shape
    return [embeddings] * 2 + [Spec((batch, channels, 1, height, width), torch.float32)] * extent.images


WAN_TI2V = StandardFamily(
    name="wan2.2-ti2v",
    index_class="WanPipeline",
    matches=_expands_timesteps,
    defaults=ServingDefaults(
        width=1280, height=704, num_frames=121, fps=24.0, num_inference_steps=50, guidance_scale=5.0
    ),
    images=(0, 1),
    batches=True,
    options=frozenset({"max_sequence_length"}),
    float32=frozenset({"vae"}),
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    texts={"text_encoder": "last_hidden_state"},
    stream=decode_wan,
    holds={
        Role.ENCODER: frozenset({"tokenizer", "text_encoder", "vae"}),
        Role.DENOISER: frozenset({"transformer", "scheduler"}),
        Role.DECODER: frozenset({"vae"}),
    },
    tokens=512,
    encode=_encode,
    denoise=_denoise,
    crossing=_crossing,
)

FAMILIES = (WAN_TI2V,)
