"""LTX-2 and LTX-2.3: videos with sound, from text or from an image and text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import LTX2Guidance

from services.model.base import Sound
from services.model.families.family import Extent, ModularFamily, Spec
from services.model.folder import ModelFolder, ServingDefaults
from services.role import Role
from triptych_proto.control_pb2 import Generation


def _projects_in_connectors(folder: ModelFolder) -> bool:
    return not folder.config("transformer").get("use_prompt_embeddings", True)


def _refuses(folder: ModelFolder) -> str:
    if "diffusion_decoder" in folder.components:
        return "it decodes with a diffusion model (LTX-2.5)"
    return ""


def _multiples(pipeline: Any) -> tuple[int, int]:
    spatial = pipeline.vae_spatial_compression_ratio * pipeline.transformer_spatial_patch_size
    return spatial, pipeline.vae_temporal_compression_ratio * pipeline.transformer_temporal_patch_size


def _latents(pipeline: Any, extent: Extent) -> dict[str, Spec]:
    """Of both picture and sound, as sequences."""
    spatial, temporal = _multiples(pipeline)
    config = pipeline.transformer.config
    tokens = (
        (extent.width // spatial) * (extent.height // spatial) * ((extent.num_frames - 1) // temporal + 1)
    )
    channels = config.in_channels * config.patch_size**2 * config.patch_size_t
    return {
        "latents": Spec((1, tokens, channels), torch.float32),
        "audio_latents": Spec((1, _sound_tokens(pipeline, extent), _sound_channels(pipeline)), torch.float32),
    }


def _sound_tokens(pipeline: Any, extent: Extent) -> int:
    """In the blocks' own order of operations: it rounds."""
    spectra = pipeline.audio_sampling_rate / pipeline.audio_hop_length
    a_second: float = spectra / pipeline.audio_vae_temporal_compression_ratio
    return round(extent.num_frames / extent.fps * a_second)


def _registers(pipeline: Any) -> int:
    """The connectors put a whole number of sets of them in the place of padding."""
    config = pipeline.connectors.config
    pairs = config.video_connector_num_learnable_registers, config.audio_connector_num_learnable_registers
    return math.lcm(*(count or 1 for count in pairs))


def _sound_channels(pipeline: Any) -> int:
    config = pipeline.audio_vae.config
    channels: int = config.latent_channels * (config.mel_bins // pipeline.audio_vae_mel_compression_ratio)
    return channels


def _encoded(pipeline: Any, extent: Extent) -> list[Spec]:
    """Embeddings for picture and sound, and their mask, with and against the prompt; then the image."""
    config = pipeline.connectors.config
    picture = config.video_connector_num_attention_heads * config.video_connector_attention_head_dim
    sound = config.audio_connector_num_attention_heads * config.audio_connector_attention_head_dim
    texts = [Spec((1, extent.tokens, dim)) for dim in (picture, sound)]
    texts.append(Spec((1, extent.tokens), torch.int64))
    spatial = pipeline.vae_spatial_compression_ratio
    height, width = extent.height // spatial, extent.width // spatial
    image = Spec((1, pipeline.transformer.config.in_channels, 1, height, width), torch.float32)
    return texts * 2 + [image] * extent.images


def _guiders(block: int) -> Callable[[Role, Generation], dict[str, Any]]:
    """The request's scale is that of the picture; all else is as diffusers has it by default, with the
    transformer's ``block`` perturbed. No scale up to 1 is guidance, of any kind: for distilled models.
    """

    def guiders(role: Role, generation: Generation) -> dict[str, Any]:
        scale = generation.guidance_scale
        common = {
            "stg_scale": 1.0,
            "modality_scale": 3.0,
            "guidance_rescale": 0.7,
            "spatio_temporal_guidance_blocks": [block],
        }
        if scale <= 1.0:
            return {"guider": LTX2Guidance(), "audio_guider": LTX2Guidance()}
        return {
            "guider": LTX2Guidance(guidance_scale=scale, **common),
            "audio_guider": LTX2Guidance(guidance_scale=7.0, **common),
        }

    return guiders


def _listen(pipeline: Any, made: Mapping[str, Any]) -> Sound:
    return Sound(made["audio"][0].float().cpu().numpy(), pipeline.vocoder.config.output_sampling_rate)


_TEXTS = ("connector_prompt_embeds", "connector_audio_prompt_embeds")

LTX_2 = ModularFamily(
    name="ltx-2",
    index_class="LTX2Pipeline",
    modular_pipeline="LTX2ModularPipeline",
    refuses=_refuses,
    workflows=("text2video", "image2video"),
    defaults=ServingDefaults(
        width=768, height=512, num_frames=121, fps=24.0, num_inference_steps=30, guidance_scale=3.0
    ),
    sound=True,
    images=(0, 1),
    # A request always says how long its video is.
    config_only={Role.ENCODER: frozenset({"duration_head"}), Role.DENOISER: frozenset({"audio_vae"})},
    inputs={"use_cross_timestep": False},
    embeddings=frozenset(_TEXTS) | {f"negative_{name}" for name in _TEXTS} | {"dtype"},
    tokens_multiple=_registers,
    least_side=64,  # the VAE mirrors latents at their edges, which takes two of them
    multiples=_multiples,
    encoded=_encoded,
    latents=_latents,
    cached_block="text_encoder",  # with its connectors; the hidden states that go into them are too large
    guiders=_guiders(29),
    listen=_listen,
)
LTX_2_3 = replace(
    LTX_2,
    name="ltx-2.3",
    matches=_projects_in_connectors,
    inputs={"use_cross_timestep": True},
    guiders=_guiders(28),
)

FAMILIES = (LTX_2_3, LTX_2)
