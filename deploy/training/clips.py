"""``AutoencoderKLWan`` over a whole clip at once: what its chunk by chunk coding computes, for training.

The library codes a clip in chunks of four frames and remembers between them what causal convolutions look
back at. On a whole clip their padding does the same, with a fifth of the kernel launches. Only resampling
in time knows of chunks: it leaves the first frame as it is.
"""

from __future__ import annotations

from typing import Any

import torch


def encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The mode of ``vae.encode``: (n, 3, 4k+1, h, w) in [-1, 1] to (n, z_dim, k+1, h/scale, w/scale)."""
    encoder = vae.encoder
    x = encoder.conv_in(pixels)
    for layer in encoder.down_blocks:
        x = layer(x)
        if getattr(layer, "mode", "") == "downsample3d" and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(encoder.mid_block(x))))
    mode, _ = vae.quant_conv(x).chunk(2, dim=1)
    return torch.as_tensor(mode)


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """``vae.decode`` without its clamp, which would stop gradients: ``encode``'s shapes, the other way."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        for upsampler in block.upsamplers or ():
            if upsampler.mode == "upsample3d" and x.shape[2] > 1:
                x = torch.cat([x[:, :, :1], _doubled(upsampler.time_conv(x[:, :, 1:]))], 2)
            x = upsampler(x)
    return torch.as_tensor(decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x))))


def _doubled(x: torch.Tensor) -> torch.Tensor:
    """(n, 2c, t, h, w) to (n, c, 2t, h, w): each half of the channels is every other frame."""
    n, channels, t, h, w = x.shape
    pairs = x.reshape(n, 2, channels // 2, t, h, w)
    return torch.stack((pairs[:, 0], pairs[:, 1]), 3).reshape(n, channels // 2, 2 * t, h, w)
