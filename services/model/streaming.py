"""Decoding a video chunk by chunk: frames can be encoded while later ones are computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify


@torch.no_grad()
def decode_wan(pipeline: Any, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """``AutoencoderKLWan.decode`` of denoised latents (1, z_dim, n, h, w), bit for bit, as it goes along.

    Yields (1, 3, k, height, width) in [-1, 1], in the VAE's dtype: one frame, then ``temporal factor``
    frames for each further latent frame. The VAE decodes causally, one latent frame at a time, and keeps
    what convolutions must remember in a cache of its own: one decode at a time.
    """
    vae = pipeline.vae
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    # As in the pipeline, a quotient of a reciprocal: a product would round otherwise.
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    z = (latents / inverse_std + mean).to(vae.dtype)
    vae.clear_cache()
    try:
        x = vae.post_quant_conv(z)
        for i in range(z.shape[2]):
            vae._conv_idx = [0]
            frames = vae.decoder(
                x[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0
            )
            if vae.config.patch_size is not None:
                frames = unpatchify(frames, patch_size=vae.config.patch_size)
            yield frames.clamp(-1.0, 1.0)
    finally:
        vae.clear_cache()


FRAMES_AT_ONCE = 8


def slices(frames: np.ndarray) -> Iterator[np.ndarray]:
    """(n, height, width, 3) in [0, 1] as uint8, some frames at a time."""
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        yield (frames[start : start + FRAMES_AT_ONCE] * 255).round().astype(np.uint8)


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """(1, 3, n, height, width) in [-1, 1] to uint8 (n, height, width, 3), rounded as diffusers does."""
    pixels = (frames[0] * 0.5 + 0.5).clamp(0, 1).float().mul(255).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
