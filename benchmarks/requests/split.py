"""What splitting costs one request: three processes against the fused pipeline in one, equal threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.requests import fused
from benchmarks.requests.connection import Connection
from benchmarks.requests.row import Effort, Round, middle
from benchmarks.requests.system import running
from deploy import tiny_model

THREADS = 1  # more would be shared with the client and with whatever else runs here
FIELDS: dict[str, Any] = {
    "prompt": "a red circle moving right",
    "size": "128x128",
    "num_frames": 17,
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "fps": 8.0,
}
QUICK: dict[str, Any] = {**FIELDS, "size": "64x64", "num_frames": 5, "num_inference_steps": 2}
POLL_SECONDS = 0.01
ROLES = ("--threads", str(THREADS), "--dtype", "float32", "--device", "cpu")


def measure(effort: Effort) -> Iterator[Round]:
    """Both in turn, from the prompt to the video file, each round with frames that must be equal."""
    fields = QUICK if effort.quick else FIELDS
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        model = tiny_model.build(Path(scratch) / "tiny-wan")
        with (
            running(str(model), roles=ROLES) as box,
            fused.running(model, THREADS) as whole,
            Connection(box.port) as connection,
        ):
            for seed in range(-1, effort.rounds):  # the first warms up
                request = {**fields, "seed": seed + 1}
                alone = whole.generate(request, Path(scratch) / "fused.mp4")
                journey = connection.generate(request, POLL_SECONDS)
                if journey.video["frames_xxh3"] != alone["frames_xxh3"]:
                    raise RuntimeError(f"seed {seed + 1}: split and fused made different frames")
                if seed >= 0:
                    raw = {"split": journey.total, "fused": alone["seconds"]}
                    yield Round(
                        journey.total / alone["seconds"],
                        {**raw, "stages": journey.video["stage_durations"]},
                    )


def summary(rounds: list[Round]) -> str:
    alone, together = middle(rounds, "fused"), middle(rounds, "split")
    return f"split {together:.2f} s, fused {alone:.2f} s; their frames are equal"
