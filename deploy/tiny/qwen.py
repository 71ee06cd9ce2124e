"""A tiny Qwen-Image model with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.tiny.parts import QWEN_VOCABULARY, qwen_tokenizer, randomised, written

TEXT_DIM = 32
DEFAULTS = {"width": 128, "height": 128, "num_inference_steps": 8, "guidance_scale": 4.0}


def build(folder: Path, seed: int = 0) -> Path:
    """Qwen-Image: text to image and image to image."""
    return written(folder, _pipeline, seed, DEFAULTS)


def _pipeline() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=qwen_tokenizer(),
        transformer=_transformer(),
    )


def _text_encoder() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": QWEN_VOCABULARY,
            "hidden_size": TEXT_DIM,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": TEXT_DIM,
        },
    )
    return randomised(Qwen2_5_VLForConditionalGeneration(config))


def _transformer() -> Any:
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(4, 6, 6),
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return randomised(AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1))
