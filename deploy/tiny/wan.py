"""Tiny Wan models with random weights: text to video and image to video, with one transformer or two.

Their videos are coloured noise, but every component, file and tensor is of the kind that the 14B models have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deploy.tiny.parts import T5_VOCABULARY, randomised, t5_tokenizer, written

DEFAULTS = {
    "width": 128,
    "height": 128,
    "num_frames": 17,
    "fps": 8,
    "num_inference_steps": 10,
    "guidance_scale": 5.0,
}
TEXT_DIM = 64
IMAGE_DIM = 32
# Factors on random weights: with them frames use the range of colours, and another prompt is another video.
CONTRAST = 3.0
PROMPT_STRENGTH = 24.0


def build(folder: Path, seed: int = 0) -> Path:
    """Wan 2.1 text to video."""
    from diffusers import WanPipeline

    return written(folder, lambda: WanPipeline(**_components(), transformer=_transformer()), seed, DEFAULTS)


def build_two_transformers(folder: Path, seed: int = 0) -> Path:
    """Wan 2.2 text to video: a transformer for the first steps, another for the last."""
    from diffusers import WanPipeline

    def pipeline() -> Any:
        pair = {name: _transformer(num_layers=4) for name in ("transformer", "transformer_2")}
        return WanPipeline(**_components(), **pair, boundary_ratio=0.875)

    return written(folder, pipeline, seed, DEFAULTS | {"guidance_scale": 4.0, "guidance_scale_2": 3.0})


def build_from_image(folder: Path, seed: int = 0) -> Path:
    """Wan 2.1 image to video."""
    from diffusers import WanImageToVideoPipeline

    def pipeline() -> Any:
        transformer = _transformer(in_channels=36, num_layers=4, image_dim=IMAGE_DIM, added_kv_proj_dim=128)
        image = {"image_encoder": _image_encoder(), "image_processor": _image_processor()}
        return WanImageToVideoPipeline(**_components(), **image, transformer=transformer)

    return written(folder, pipeline, seed, DEFAULTS)


def build_from_image_two_transformers(folder: Path, seed: int = 0) -> Path:
    """Wan 2.2 image to video."""
    from diffusers import WanImageToVideoPipeline

    def pipeline() -> Any:
        pair = {name: _transformer(in_channels=36, num_layers=4) for name in ("transformer", "transformer_2")}
        return WanImageToVideoPipeline(**_components(), **pair, boundary_ratio=0.9)

    return written(folder, pipeline, seed, DEFAULTS | {"guidance_scale": 3.5, "guidance_scale_2": 3.5})


def build_text_and_image(folder: Path, seed: int = 0) -> Path:
    """Wan 2.2 TI2V: a VAE of patches, and a timestep for each token."""
    from diffusers import AutoencoderKLWan, WanPipeline

    def pipeline() -> Any:
        vae = AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=16,
            num_res_blocks=1,
            is_residual=True,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
        )
        parts = _components() | {"vae": randomised(vae)}
        return WanPipeline(**parts, transformer=_transformer(num_layers=4), expand_timesteps=True)

    return written(folder, pipeline, seed, DEFAULTS)


def _components() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": _text_encoder(),
        "vae": _vae(),
        "scheduler": _scheduler(),
    }


def _text_encoder() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=T5_VOCABULARY,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return randomised(UMT5EncoderModel(config))


def _transformer(**changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    transformer = randomised(
        WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            text_dim=TEXT_DIM,
            freq_dim=64,
            ffn_dim=256,
            **({"num_layers": 8} | changes),
        )
    )
    with torch.no_grad():
        for block in transformer.blocks:
            block.attn2.to_out[0].weight.mul_(PROMPT_STRENGTH)
    return transformer


def _vae() -> Any:
    from diffusers import AutoencoderKLWan

    vae = randomised(AutoencoderKLWan(base_dim=12, num_res_blocks=1))
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(CONTRAST)
        vae.decoder.conv_out.bias.zero_()
    return vae


def _image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return randomised(CLIPVisionModel(config))


def _image_processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def _scheduler() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
