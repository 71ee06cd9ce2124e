"""Tiny LTX-2 models with random weights: videos with sound, from text or from an image and text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deploy.tiny.parts import T5_LETTERS, randomised, written

TEXT_DIM, TEXT_LAYERS = 32, 2
SOUND_DIM = 16
LATENT_CHANNELS = 8
SOUND_CHANNELS, MEL_BINS = 2, 16  # of latents; of spectra
DEFAULTS = {"width": 128, "height": 128, "num_frames": 17, "fps": 8, "num_inference_steps": 8}


def build(folder: Path, seed: int = 0) -> Path:
    """LTX-2."""
    return written(folder, lambda: _pipeline(_vocoder, projecting=False), seed, DEFAULTS)


def build_projecting(folder: Path, seed: int = 0) -> Path:
    """LTX-2.3: connectors that project text for picture and sound apart, and a vocoder in two stages."""
    return written(folder, lambda: _pipeline(_widening_vocoder, projecting=True), seed, DEFAULTS)


def _pipeline(vocoder: Callable[[], Any], projecting: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
        vae=_vae(),
        audio_vae=_audio_vae(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        connectors=_connectors(projecting),
        transformer=_transformer(projecting),
        vocoder=vocoder(),
    )


def _vocabulary() -> dict[str, int]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return {token: index for index, token in enumerate([*special, *T5_LETTERS])}


def _tokenizer() -> Any:
    from transformers import GemmaTokenizer

    return GemmaTokenizer(vocab=_vocabulary(), merges=[])


def _text_encoder() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": len(_vocabulary()),
            "hidden_size": TEXT_DIM,
            "intermediate_size": 64,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=3,
        eoi_token_index=3,
    )
    return randomised(Gemma3ForConditionalGeneration(config))


def _connectors(projecting: bool) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    sound_dim = SOUND_DIM if projecting else TEXT_DIM
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=TEXT_LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=TEXT_DIM // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=sound_dim // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        rope_type="split",
        per_modality_projections=projecting,
        video_hidden_dim=TEXT_DIM,
        audio_hidden_dim=sound_dim,
        proj_bias=projecting,
    )
    return randomised(connectors)


def _transformer(projecting: bool) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    transformer = LTX2VideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=TEXT_DIM // 2,
        cross_attention_dim=TEXT_DIM,
        gated_attn=projecting,
        cross_attn_mod=projecting,
        audio_in_channels=SOUND_CHANNELS * MEL_BINS // 4,
        audio_out_channels=SOUND_CHANNELS * MEL_BINS // 4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=SOUND_DIM // 2,
        audio_cross_attention_dim=SOUND_DIM,
        audio_gated_attn=projecting,
        audio_cross_attn_mod=projecting,
        num_layers=30,  # guidance perturbs the last or the last but one
        caption_channels=TEXT_DIM,
        rope_type="split",
        use_prompt_embeddings=not projecting,
        perturbed_attn=True,
    )
    return randomised(transformer)


def _vae() -> Any:
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatial_padding_mode="reflect",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    with torch.no_grad():
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 1.5)
    return randomised(vae)


def _audio_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Audio

    vae = AutoencoderKLLTX2Audio(
        base_channels=SOUND_CHANNELS * MEL_BINS // 4,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        latent_channels=SOUND_CHANNELS,
        mel_bins=MEL_BINS,
    )
    with torch.no_grad():
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 1.5)
    return randomised(vae)


def _vocoder() -> Any:
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    vocoder = LTX2Vocoder(
        in_channels=2 * MEL_BINS,  # of two channels of sound
        hidden_channels=32,
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return randomised(vocoder)


def _widening_vocoder() -> Any:
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

    vocoder = LTX2VocoderWithBWE(
        in_channels=2 * MEL_BINS,
        hidden_channels=64,
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        bwe_in_channels=2 * MEL_BINS,
        bwe_hidden_channels=32,
        bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1, 3]],
        num_mel_channels=MEL_BINS,
    )
    with torch.no_grad():
        for name, buffer in vocoder.mel_stft.named_buffers():
            buffer.normal_(std=0.1) if "stft" in name else buffer.uniform_()
        for stage, loudness in ((vocoder.vocoder, 0.2), (vocoder.bwe_generator, 0.05)):
            stage.conv_out.weight.mul_(loudness)  # only the sum is kept from being too loud
    return randomised(vocoder)
