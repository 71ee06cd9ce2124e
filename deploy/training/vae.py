"""Trains the demo model's ``AutoencoderKLWan``: stills first, then longer and longer clips."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from deploy.training import clips, scenes
from deploy.training.budget import Average, Budget, rate
from deploy.training.judge import agreement, judge
from deploy.training.log import Log

# By name: what ``AutoencoderKLWan`` is made of. All but their sizes is as in Wan 2.1.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "scale8": {"base_dim": 16, "num_res_blocks": 1, "z_dim": 16},
    "scale4": {
        "base_dim": 16,
        "num_res_blocks": 1,
        "z_dim": 8,
        "dim_mult": [1, 2, 4],
        "temperal_downsample": [True, True],
        "scale_factor_spatial": 4,
    },
}


class Stage(NamedTuple):
    """A part of the training."""

    until: float  # of the budget
    frames: int  # of a clip
    scale: int  # of the batch, against that of whole clips


# Whole clips cost most; what stills can teach is known when they come.
STAGES = (Stage(0.15, 1, 4), Stage(0.4, 5, 2), Stage(1.0, scenes.FRAMES, 1))

PEAK_RATE = 1e-3
DECAY = 0.998
CLIP = 1.0  # the gradient's norm
# Pixels of the shape and around it weigh more than others: the ground alone would be a good mean.
FOREGROUND = 8.0
AROUND = 7  # pixels, a window's side
# The most noise in latents, in standard deviations of their channel: the denoiser leaves some too.
NOISE = 0.3
HELD_OUT_CLIPS = 64
MEASURED_CLIPS = 512
AT_ONCE = 16

Mode = Callable[[], AbstractContextManager[Any]]


def build(variant: str) -> Any:
    """Fresh weights, with which information passes from the first step on.

    With those that the library gives, hundreds of steps find no more than the ground's colour. So residual
    blocks begin as what goes past them, all other convolutions keep lengths, and time is not looked at yet.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock

    config = VARIANTS[variant]
    size = config["z_dim"]
    vae = AutoencoderKLWan(**config, latents_mean=[0.0] * size, latents_std=[1.0] * size)
    for module in vae.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            _keep_lengths(module)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            torch.nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, WanAttentionBlock):
            torch.nn.init.zeros_(module.proj.weight)
    return vae


def latent_size(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Of a clip's latents (z_dim, frames, height, width), from a VAE's config."""
    side = scenes.SIZE // config.get("scale_factor_spatial", 8)
    return config["z_dim"], (scenes.FRAMES - 1) // 4 + 1, side, side


def train(variant: str, budget: Budget, batch: int, device: torch.device, seed: int, log: Log) -> Any:
    """A trained VAE, its weights averaged and its latents measured; ``batch`` whole clips a step."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    vae = build(variant).to(device)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=device.type == "cuda"
    )
    mode = _fastest_mode(vae, max(batch // 4, 1), generator, log)
    average = Average(parameters, DECAY)
    while (spent := budget.spent) < 1:
        stage = next(stage for stage in STAGES if spent < stage.until)
        for group in optimizer.param_groups:
            group["lr"] = rate(spent, PEAK_RATE)
        first = chance.randint(0, scenes.FRAMES - stage.frames)
        with mode():
            loss = _loss(vae, batch * stage.scale, first, stage.frames, generator)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        budget.done += 1
        if budget.done % 50 == 0:
            figures = {"loss": loss.item(), "norm": norm.item(), "seconds": budget.seconds}
            log("vae", variant=variant, step=budget.done, frames=stage.frames, **figures)
    average.apply()
    _lay_out(vae, torch.contiguous_format)
    vae.requires_grad_(False)
    _normalise(vae, generator)
    return vae


def quality(vae: Any, device: torch.device) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """How well held-out scenes come back, coded as in serving: L1 of pixels from 0 to 1 (``shape``: where
    the shape is), and shares of right properties. With the clips and what came back (n, 3, frames, h, w).
    """
    generator = torch.Generator(device).manual_seed(1)
    drawn = scenes.random_scenes(HELD_OUT_CLIPS, scenes.HELD_OUT, generator)
    pixels, cover = scenes.draw(drawn)
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in torch.split(pixels, AT_ONCE)]
    decoded = torch.cat(parts)
    error = (decoded - pixels).abs() / 2
    meant = [scenes.MEANINGS[index] for index in drawn.meaning.tolist()]
    shown = [judge(frames) for frames in to_frames(decoded)]
    figures = {"l1": error.mean().item(), "shape_l1": ((error * cover).mean() / cover.mean()).item()}
    return figures | dict(agreement(shown, meant)), pixels, decoded


def to_frames(pixels: torch.Tensor) -> Any:
    """(n, 3, frames, height, width) in [-1, 1] to a uint8 array (n, frames, height, width, 3)."""
    eight = pixels.float().mul(0.5).add(0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return eight.permute(0, 2, 3, 4, 1).cpu().numpy()


@torch.no_grad()
def _keep_lengths(convolution: torch.nn.Conv2d | torch.nn.Conv3d) -> None:
    """Orthogonal weights; of a convolution in time, for the frame itself and not for those before it."""
    weight = convolution.weight
    here = weight[:, :, -1] if weight.dim() == 5 else weight
    rows = torch.nn.init.orthogonal_(torch.empty(here.shape[0], here[0].numel()))
    weight.zero_()
    here.copy_(rows.view_as(here))
    if convolution.bias is not None:
        convolution.bias.zero_()


def _loss(vae: Any, count: int, first: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    """L1 + L2 of random training scenes, weighted, through noisy latents."""
    pixels, cover = scenes.draw(scenes.random_scenes(count, scenes.TRAINING, generator), first, frames)
    z = clips.encode(vae, pixels)
    # In the channel's own measure: larger latents would not escape it.
    spread = z.detach().float().std(dim=(0, 2, 3, 4), keepdim=True)
    level = NOISE * torch.rand(count, 1, 1, 1, 1, generator=generator, device=z.device)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    error = clips.decode(vae, z + spread * level * noise).float() - pixels
    near = F.max_pool3d(cover, (1, AROUND, AROUND), stride=1, padding=(0, AROUND // 2, AROUND // 2))
    weight = 1 + FOREGROUND * near
    return ((error.abs() + error.square()) * weight).mean() / weight.mean()


@torch.no_grad()
def _normalise(vae: Any, generator: torch.Generator) -> None:
    """Measures latents' means and deviations, for the config; makes samples as noisy as training's were."""
    parts = [
        clips.encode(vae, scenes.draw(scenes.random_scenes(AT_ONCE, scenes.TRAINING, generator))[0])
        for _ in range(MEASURED_CLIPS // AT_ONCE)
    ]
    deviations, means = torch.std_mean(torch.cat(parts), dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=means.tolist(), latents_std=deviations.tolist())
    size = vae.config.z_dim
    vae.quant_conv.weight[size:].zero_()
    vae.quant_conv.bias[size:].copy_(2 * torch.log(deviations * NOISE / 2))


def _fastest_mode(vae: Any, batch: int, generator: torch.Generator, log: Log) -> Mode:
    """On a GPU, the quickest of precisions (TF32, bfloat16) and memory formats, tried on whole clips."""
    if generator.device.type != "cuda":
        return lambda: torch.autocast("cpu", enabled=False)
    found: dict[tuple[bool, bool], float] = {}
    for half, last in product((False, True), (False, True)):
        _lay_out(vae, torch.channels_last_3d if last else torch.contiguous_format)
        for attempt in range(4):  # the first of them chooses algorithms
            if attempt == 1:
                torch.cuda.synchronize()
                started = time.monotonic()
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = _loss(vae, batch, 0, scenes.FRAMES, generator)
            torch.autograd.backward(loss)
            vae.zero_grad()
        torch.cuda.synchronize()
        found[half, last] = (time.monotonic() - started) / 3
        log("mode", bfloat16=half, channels_last=last, batch=batch, step_seconds=found[half, last])
    half, last = min(found, key=lambda mode: found[mode])
    _lay_out(vae, torch.channels_last_3d if last else torch.contiguous_format)
    return lambda: torch.autocast("cuda", torch.bfloat16, enabled=half)


def _lay_out(vae: Any, memory_format: torch.memory_format) -> None:
    """Where 3D convolutions keep their channels."""
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
