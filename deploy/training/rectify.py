"""Makes a trained denoiser's ways straight, so that few steps do: rectified flow.

The denoiser makes videos of noise, with many steps and guidance; what each shows is drawn anew; then the
denoiser is trained to go from just that noise to just that clip. After "Flow Straight and Fast", Liu et al.
2022 (https://arxiv.org/abs/2209.03003), where the ends are the model's own.
"""

from __future__ import annotations

from typing import Any

import torch

from deploy.training import clips, redraw, scenes, vae
from deploy.training.budget import Budget
from deploy.training.denoiser import Denoiser, Latents, normal
from deploy.training.log import Log
from deploy.training.scenes import MEANINGS

STEPS = 5
GUIDANCE = 2.0
PEAK_RATE = 3e-4
AT_ONCE = 16
LEAST_YIELD = 0.2  # of the videos; a model that is wrong more often has nothing to teach


class NothingToTeach(Exception):
    """Most of the model's own videos are wrong."""


@torch.no_grad()
def pairs(denoiser: Denoiser, coder: Any, captions: torch.Tensor, count: int, seed: int, log: Log) -> Latents:
    """Noise, and the latents of the scene that the denoiser makes of it, for ``count`` training prompts.

    Videos whose colour, motion or ground is wrong are left out. NothingToTeach if most are.
    """
    device = captions.device
    generator = torch.Generator(device).manual_seed(seed)
    training = torch.tensor(scenes.TRAINING, device=device)
    mean, deviation = normal(coder)
    size = vae.latent_size(coder.config)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    made = kept = 0
    clock = Budget(seconds=1.0)
    while kept < count:
        if made >= 10 * AT_ONCE and kept < LEAST_YIELD * made:
            raise NothingToTeach(f"of {made} videos only {kept} show what their prompts say")
        meaning = training[torch.randint(len(training), (AT_ONCE,), generator=generator, device=device)]
        said = torch.randint(captions.shape[1], (AT_ONCE,), generator=generator, device=device)
        noise = torch.randn(AT_ONCE, *size, generator=generator, device=device)
        found = denoiser.sample(noise, captions[meaning, said], STEPS, GUIDANCE)
        videos = vae.to_frames(clips.decode(coder, found * deviation + mean))
        good = [n for n, video in enumerate(videos) if redraw.near(video, MEANINGS[meaning[n]])]
        made, kept = made + AT_ONCE, kept + len(good)
        if not good:
            continue
        drawn = redraw.nearest([videos[n] for n in good], [int(meaning[n]) for n in good], device)
        values = (clips.encode(coder, scenes.draw(drawn)[0]) - mean) / deviation
        parts.append((values, drawn.meaning, noise[good]))
        if made % (10 * AT_ONCE) == 0:
            moved = (found[good] - values).square().mean().item()
            log("pairs", made=made, kept=kept, moved=moved, seconds=clock.seconds)
    values, meanings, noises = (torch.cat(tensors)[:count] for tensors in zip(*parts, strict=True))
    return Latents(values, meanings, noises)
