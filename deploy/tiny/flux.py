"""Tiny FLUX.1 models with random weights: one whose guidance is an input, one that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.tiny.parts import (
    CLIP_VOCABULARY,
    T5_VOCABULARY,
    clip_tokenizer,
    randomised,
    t5_tokenizer,
    written,
)

TEXT_DIM, POOLED_DIM = 32, 16
LATENT_CHANNELS = 4
DEFAULTS = {"width": 128, "height": 128, "num_inference_steps": 8, "guidance_scale": 3.5}


def build(folder: Path, seed: int = 0) -> Path:
    """FLUX.1 dev: the schedule depends on the size of the image."""
    shifting = {"use_dynamic_shifting": True, "shift": 3.0}
    return written(folder, lambda: _pipeline(shifting, guidance_embeds=True), seed, DEFAULTS)


def build_schnell(folder: Path, seed: int = 0) -> Path:
    """FLUX.1 schnell: few steps, without guidance."""
    defaults = DEFAULTS | {"num_inference_steps": 4, "guidance_scale": 0}
    return written(folder, lambda: _pipeline({"shift": 1.0}, guidance_embeds=False), seed, defaults)


def _pipeline(shifting: dict[str, Any], guidance_embeds: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shifting),
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=_transformer(guidance_embeds),
    )


def _clip() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=POOLED_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=CLIP_VOCABULARY - 1,
    )
    return randomised(CLIPTextModel(config))


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=T5_VOCABULARY,
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return randomised(T5EncoderModel(config))


def _transformer(guidance_embeds: bool) -> Any:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=LATENT_CHANNELS * 4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomised(vae)
