"""Chunk by chunk is bit for bit what decoding at once gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor

from services.model.streaming import decode_wan, to_uint8

CONFIGS = {
    "wan 2.1": {"base_dim": 8, "num_res_blocks": 1},
    "wan 2.2 5B": {
        "base_dim": 8,
        "num_res_blocks": 1,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}


@pytest.fixture(params=CONFIGS)
def vae(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLWan(**CONFIGS[request.param]).eval()


@pytest.mark.parametrize("latent_frames", [1, 2, 4])
def test_streamed_is_decoded(vae: Any, latent_frames: int) -> None:
    latents = torch.randn(1, 16, latent_frames, 4, 6, generator=torch.Generator().manual_seed(1))
    chunks = list(decode_wan(SimpleNamespace(vae=vae), latents))
    assert [chunk.shape[2] for chunk in chunks] == [1] + [4] * (latent_frames - 1)
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    with torch.no_grad():
        whole = vae.decode(latents / inverse_std + mean, return_dict=False)[0]
    assert torch.equal(torch.cat(chunks, dim=2), whole)
    assert torch.is_grad_enabled()


def test_pixels_are_rounded_as_diffusers_does() -> None:
    frames = torch.linspace(-1.2, 1.2, 3 * 5 * 8 * 8).view(1, 3, 5, 8, 8)
    expected = VideoProcessor().postprocess_video(frames, output_type="np")[0]
    pixels = to_uint8(frames)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(pixels, (expected * 255).round().astype(np.uint8))
