"""The models that are split and fused: the demo model or one given, a tiny one, one of far more weights."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.row import Effort
from deploy import tiny_model
from deploy.onebox import DEMO_MODEL

THREADS = 1  # more would be shared with the client and with whatever else runs here
ROLES = ("--threads", str(THREADS), "--dtype", "float32", "--device", "cpu")  # options of all roles
ENCODER = ("--embedding-cache", "0")  # a prompt is encoded each time, as the fused pipeline does
PROMPT = "a red circle moving right"
LARGE_LAYERS = 24  # some 400 MB of text encoder and 270 MB of transformer


@dataclass(frozen=True)
class Model:
    """A folder, and a request that it is asked for."""

    folder: Path
    fields: dict[str, Any]


@contextlib.contextmanager
def drawing(effort: Effort) -> Iterator[Model]:
    """The one that was given, else the demo model. Its own ``triptych.json`` says what to ask for."""
    folder = effort.model or DEMO_MODEL
    yield Model(folder, _fields(folder, effort))


@contextlib.contextmanager
def small(effort: Effort) -> Iterator[Model]:
    """A tiny random Wan."""
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        folder = tiny_model.build(Path(scratch) / "tiny-wan")
        yield Model(folder, _fields(folder, effort))


@contextlib.contextmanager
def large(effort: Effort) -> Iterator[Model]:
    """Random weights in the shape of a Wan, hundreds of megabytes of them."""
    with _large(effort, effort.count(LARGE_LAYERS, 4)) as model:
        yield model


@contextlib.contextmanager
def half(effort: Effort) -> Iterator[Model]:
    """The large one with half of its layers: a request has tensors of the same sizes in both."""
    with _large(effort, effort.count(LARGE_LAYERS, 4) // 2) as model:
        yield model


@contextlib.contextmanager
def _large(effort: Effort, layers: int) -> Iterator[Model]:
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        tiny = tiny_model.build(Path(scratch) / "tiny-wan")
        folder = build_large(Path(scratch) / "large", tiny, layers)
        yield Model(folder, _fields(folder, effort))


def _fields(folder: Path, effort: Effort) -> dict[str, Any]:
    path = folder / "triptych.json"
    if not path.exists():
        raise RuntimeError(f"{path} is missing: expected a model with defaults for its requests")
    defaults = json.loads(path.read_text())
    fields = {
        "prompt": PROMPT,
        "size": f"{defaults['width']}x{defaults['height']}",
        "num_frames": defaults["num_frames"],
        "num_inference_steps": defaults["num_inference_steps"],
        "guidance_scale": defaults["guidance_scale"],
        "fps": float(defaults["fps"]),
    }
    return {**fields, "num_frames": 5, "num_inference_steps": 2} if effort.quick else fields


def build_large(folder: Path, small: Path, layers: int) -> Path:
    """A Wan with the tokenizer, VAE and scheduler of ``small`` and far more weights in the other two: with
    24 layers some 400 MB of text encoder and 270 MB of transformer.
    """
    from diffusers import WanPipeline, WanTransformer3DModel
    from diffusers.utils.logging import disable_progress_bar
    from transformers import UMT5Config, UMT5EncoderModel
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    pipeline = WanPipeline.from_pretrained(small, dtype=torch.float32)
    width = 512
    encoder = UMT5Config(
        vocab_size=pipeline.text_encoder.config.vocab_size,
        d_model=width,
        d_kv=64,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=8,
        dropout_rate=0.0,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        text_dim=width,
        freq_dim=64,
        ffn_dim=4 * width,
        num_layers=layers * 2 // 3,
    )
    WanPipeline(
        tokenizer=pipeline.tokenizer,
        text_encoder=UMT5EncoderModel(encoder).eval(),
        transformer=transformer.eval(),
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
    ).save_pretrained(folder)
    (folder / "triptych.json").write_text((small / "triptych.json").read_text())
    return folder
