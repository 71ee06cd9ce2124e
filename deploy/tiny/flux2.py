"""Tiny FLUX.2 klein models with random weights: one for few steps without guidance, one to be guided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deploy.tiny.parts import QWEN_VOCABULARY, qwen_tokenizer, randomised, written

TEXT_DIM, LATENT_CHANNELS = 16, 4
DEFAULTS = {"width": 128, "height": 128, "num_inference_steps": 4}


def build(folder: Path, seed: int = 0) -> Path:
    """FLUX.2 klein."""
    return written(folder, lambda: _pipeline(distilled=True), seed, DEFAULTS)


def build_base(folder: Path, seed: int = 0) -> Path:
    """FLUX.2 klein base, which is not distilled."""
    return written(folder, lambda: _pipeline(distilled=False), seed, DEFAULTS)


def _pipeline(distilled: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=qwen_tokenizer(),
        transformer=_transformer(),
        is_distilled=distilled,
    )


def _text_encoder() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=28,  # the 9th, 18th and 27th are used
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return randomised(Qwen3ForCausalLM(config))


def _transformer() -> Any:
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=LATENT_CHANNELS * 4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM * 3,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKLFlux2

    channels = (8, 8, 16, 16)
    vae = AutoencoderKLFlux2(
        block_out_channels=channels, layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=4
    )
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 1.5)
    return randomised(vae)
