"""What splitting saves: the resident memory of each role and of the fused pipeline, same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.requests import fused
from benchmarks.requests.connection import Connection
from benchmarks.requests.row import Effort, Round, middle
from benchmarks.requests.split import QUICK, ROLES, THREADS
from benchmarks.requests.system import named, resident_bytes, running
from deploy import tiny_model

WEIGHTS = {"encoder": "text_encoder", "denoiser": "transformer", "decoder": "vae"}
POOLS = ("--max-pixels", str(128 * 128), "--max-frames", "17")  # small: weights are to be seen
MB = 10**6


def measure(effort: Effort) -> Iterator[Round]:
    """Bytes that a role grows by for each byte that its own weights grow by: of the greediest of them."""
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        small = tiny_model.build(Path(scratch) / "small")
        large = build(Path(scratch) / "large", small, layers=effort.count(24, 4))
        added = {role: weights(large, role) - weights(small, role) for role in WEIGHTS}
        for _ in range(effort.count(2, 1)):
            before, after = (resident(model, Path(scratch)) for model in (small, large))
            grown = {name: after[name] - before[name] for name in after}
            yield Round(
                max(grown[role] / nbytes for role, nbytes in added.items() if nbytes),
                {"small": before, "large": after, "grown": grown, "weights_added": added},
            )


def summary(rounds: list[Round]) -> str:
    names = (*WEIGHTS, "fused")
    resident = ", ".join(f"{name} {middle(rounds, 'large', name) / MB:.0f} MB" for name in names)
    added = ", ".join(f"{role} {nbytes / MB:.0f}" for role, nbytes in rounds[0].raw["weights_added"].items())
    grown = ", ".join(f"{name} {middle(rounds, 'grown', name) / MB:.0f}" for name in names)
    return f"resident: {resident}; weights added {added} MB made them grow by {grown} MB"


def resident(model: Path, scratch: Path) -> dict[str, int]:
    """Bytes by role, and ``fused``, after a request."""
    with running(str(model), roles=(*ROLES, *POOLS)) as box, Connection(box.port) as connection:
        connection.generate({**QUICK, "seed": 1})
        found = {role: resident_bytes(named(box, role).pid) for role in WEIGHTS}
    with fused.running(model, THREADS) as whole:
        whole.generate({**QUICK, "seed": 1}, scratch / "fused.mp4")
        return {**found, "fused": resident_bytes(whole.pid)}


def weights(model: Path, role: str) -> int:
    return sum(file.stat().st_size for file in (model / WEIGHTS[role]).glob("*.safetensors"))


def build(folder: Path, small: Path, layers: int) -> Path:
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
