"""Tiny HunyuanVideo 1.5 models with random weights: text to video, image to video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.tiny.parts import QWEN_VOCABULARY, qwen_tokenizer, randomised, written

TEXT_DIM, GLYPH_DIM, IMAGE_DIM = 32, 16, 16
IMAGE_SIZE, PATCH_SIZE = 378, 14  # 729 patches: the pipeline counts on them
DEFAULTS = {
    "width": 128,
    "height": 128,
    "num_frames": 17,
    "fps": 8,
    "num_inference_steps": 8,
}


def build(folder: Path, seed: int = 0) -> Path:
    """Text to video."""
    from diffusers import HunyuanVideo15Pipeline

    def pipeline() -> Any:
        return HunyuanVideo15Pipeline(**_components(), transformer=_transformer("t2v"))

    return written(folder, pipeline, seed, DEFAULTS)


def build_from_image(folder: Path, seed: int = 0) -> Path:
    """Image to video."""
    from diffusers import HunyuanVideo15ImageToVideoPipeline
    from transformers import SiglipImageProcessorPil

    def pipeline() -> Any:
        extractor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
        image = {"image_encoder": _image_encoder(), "feature_extractor": extractor}
        return HunyuanVideo15ImageToVideoPipeline(**_components(), **image, transformer=_transformer("i2v"))

    return written(folder, pipeline, seed, DEFAULTS)


def _components() -> dict[str, Any]:
    from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
    from transformers import ByT5Tokenizer

    return {
        "text_encoder": _text_encoder(),
        "tokenizer": qwen_tokenizer(),
        "text_encoder_2": _glyph_encoder(),
        "tokenizer_2": ByT5Tokenizer(),
        "vae": _vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def _text_encoder() -> Any:
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    return randomised(Qwen2_5_VLTextModel(config))


def _glyph_encoder() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=384, d_model=GLYPH_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return randomised(T5EncoderModel(config))


def _image_encoder() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    return randomised(SiglipVisionModel(config))


def _transformer(task: str) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    latent_channels = 4
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=GLYPH_DIM,
        image_embed_dim=IMAGE_DIM,
        rope_axes_dim=(4, 6, 6),
        target_size=64,  # pixels: where nobody says how large, the output is about this square
        task_type=task,
        use_meanflow=task == "i2v",
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo15

    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16, 32, 32), layers_per_block=1
    )
    return randomised(vae)
