"""VAEs that are trained side by side, for the best of them to be taken."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch

from deploy.training import sheet, vae
from deploy.training.budget import Budget
from deploy.training.log import Log

METRICS = "metrics.jsonl"
ALGORITHMS = 4  # that are tried for a convolution; all of them would take a large part of the time
QUALITY = "quality.json"
ON_SHEET = 6  # clips; each with what came back
FRAMES_ON_SHEET = 5


class Candidate:
    """A VAE in training, in a process of its own: small models wait for Python more than for a GPU."""

    def __init__(
        self,
        variant: str,
        folder: Path,
        out: Path,
        device: str,
        seed: int,
        budget: tuple[int | None, float | None, int],
    ) -> None:
        """Starts it. ``budget`` has steps, seconds and clips a step; the VAE goes to ``folder``."""
        self.variant, self.folder = variant, folder
        arguments = (variant, folder, out, device, seed, budget)
        self._process = multiprocessing.get_context("spawn").Process(target=_train, args=arguments)
        self._process.start()

    def wait(self) -> float | None:
        """How far off it draws shapes; None if the process failed."""
        self._process.join()
        if self._process.exitcode != 0:
            return None
        figures: dict[str, float] = json.loads((self.folder / QUALITY).read_text())
        return figures["shape_l1"]


def best(candidates: Sequence[Candidate], log: Log) -> Path:
    """The folder of the one that draws shapes best. RuntimeError if none got that far."""
    found = {}
    for candidate in candidates:
        loss = candidate.wait()
        if loss is None:
            log("VAE failed", variant=candidate.variant)
        else:
            found[candidate.folder] = loss
    if not found:
        raise RuntimeError("no VAE could be trained")
    return min(found, key=lambda folder: found[folder])


def _train(
    variant: str,
    folder: Path,
    out: Path,
    device_name: str,
    seed: int,
    limits: tuple[int | None, float | None, int],
) -> None:
    device, log = torch.device(device_name), Log(out / METRICS)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = ALGORITHMS
    steps, seconds, batch = limits
    budget = Budget(steps, seconds)
    trained = vae.train(variant, budget, batch, device, seed, log)
    torch.backends.cudnn.benchmark = False
    figures, drawn, decoded = vae.quality(trained, device)
    log("VAE trained", variant=variant, steps=budget.done, seconds=budget.seconds, **figures)
    pairs = zip(vae.to_frames(drawn[:ON_SHEET]), vae.to_frames(decoded[:ON_SHEET]), strict=True)
    rows = [frames for pair in pairs for frames in pair]
    sheet.write(out / f"vae-{variant}.png", rows, ["drawn", "decoded"] * ON_SHEET, FRAMES_ON_SHEET)
    trained.save_pretrained(folder)
    (folder / QUALITY).write_text(json.dumps(figures))
