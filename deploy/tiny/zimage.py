"""Tiny Z-Image models with random weights: one to be guided, one for few steps without guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.tiny.parts import QWEN_VOCABULARY, qwen_tokenizer, randomised, written

TEXT_DIM = 32
DEFAULTS = {"width": 128, "height": 128, "num_inference_steps": 8, "guidance_scale": 5.0}


def build(folder: Path, seed: int = 0) -> Path:
    """Z-Image: text to image and image to image."""
    return written(folder, lambda: _pipeline(shift=6.0), seed, DEFAULTS)


def build_turbo(folder: Path, seed: int = 0) -> Path:
    """Z-Image Turbo: few steps, without guidance."""
    return written(folder, lambda: _pipeline(shift=3.0), seed, DEFAULTS | {"guidance_scale": 0})


def _pipeline(shift: float) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=qwen_tokenizer(),
        transformer=_transformer(),
    )


def _text_encoder() -> Any:
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return randomised(Qwen3Model(config))


def _transformer() -> Any:
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        dim=48,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_DIM,
        axes_dims=[8, 8, 8],
        axes_lens=[1024, 512, 512],
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKL

    channels = (8, 8, 16)  # one level less than the large model's: 4 pixels to a latent one, not 8
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomised(vae)
