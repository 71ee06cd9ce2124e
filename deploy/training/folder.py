"""The demo model's folder: an ordinary diffusers one, with what it serves by default."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import torch

from deploy.training import scenes
from deploy.training.denoiser import make_scheduler

DEFAULTS = {
    "width": scenes.SIZE,
    "height": scenes.SIZE,
    "num_frames": scenes.FRAMES,
    "fps": scenes.FPS,
    "num_inference_steps": 6,
    "guidance_scale": 1.5,
}


def save(folder: Path, vae: Any, text_encoder: Any, transformer: Any, tokenizer: Any) -> None:
    """Weights are stored as float16; the models given become so."""
    from diffusers import WanPipeline

    vae.register_to_config(_name_or_path="")  # where it lay is nobody's business
    models = {"vae": vae, "text_encoder": text_encoder, "transformer": transformer}
    halves = {name: model.to("cpu", torch.float16).eval() for name, model in models.items()}
    WanPipeline(**halves, tokenizer=tokenizer, scheduler=make_scheduler()).save_pretrained(folder)
    (folder / "triptych.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")


def pack(folder: Path, archive: Path) -> None:
    """The folder, under its name, as one tar file."""
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=folder.name)
