"""The same request through three roles on the same GPU, over HTTP, as ``triptych up`` runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.connection import Connection
from benchmarks.gpu import device
from benchmarks.gpu.model import Work
from benchmarks.system import ROLES, named, resident_bytes, running

POLL_SECONDS = 0.02


def measure(model: Path, work: Work, place: str, rounds: int) -> Iterator[dict[str, Any]]:
    """First what starting took; then, after a warm-up of one step, each request; last the memory held."""
    limits = ("--max-pixels", str(work.width * work.height), "--max-frames", str(work.num_frames))
    before = device.memory_in_use()
    started = time.monotonic()
    with running(str(model), roles=("--device", place, *limits)) as box, Connection(box.port) as connection:
        yield {"part": "split load", "seconds": time.monotonic() - started}
        for seed in range(-1, rounds):
            steps = {"num_inference_steps": 1} if seed < 0 else {}
            journey = connection.generate({**work.fields(seed + 1), **steps}, POLL_SECONDS)
            if seed >= 0:
                timeline = connection.timeline(journey.video["id"])
                yield {
                    "part": "split",
                    "seed": seed + 1,
                    "seconds": journey.total,
                    "stages": {a["stage"]: a["compute_seconds"] for a in timeline["attempts"]},
                    "reads": {a["stage"]: a["transfer_seconds"] for a in timeline["attempts"]},
                    "read_bytes": {a["stage"]: a["transfer_bytes"] for a in timeline["attempts"]},
                    "save": sum(a["save_seconds"] for a in timeline["attempts"]),
                    "frames_xxh3": journey.video["frames_xxh3"],
                }
        pids = {role: named(box, role).pid for role in ROLES}
        held = device.memory_of(set(pids.values()))
        yield {
            "part": "split memory",
            "gpu_bytes": {role: held.get(pid) for role, pid in pids.items()},
            "gpu_bytes_in_all": device.memory_in_use() - before,
            "host_bytes": {role: resident_bytes(pid) for role, pid in pids.items()},
        }
