"""How close the system comes to what its slowest stage allows: emulated stages, two denoisers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.requests.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.requests.row import Effort, Round, middle
from benchmarks.requests.system import running

ENCODE, DENOISE, DECODE = 0.05, 0.4, 0.1
DENOISERS = 2
MODEL = f"emulated:encode={ENCODE},denoise={DENOISE},decode={DECODE},embeddings=4000000,latents=42000000"
BOUND = DENOISERS / DENOISE  # requests/s
FILL = 4  # requests that end before the pipeline is full
PAUSE = 0.05


def measure(effort: Effort) -> Iterator[Round]:
    """Accepted all at once; the rate of their ends, from when all stages have something to do."""
    with running(MODEL, {"denoiser": DENOISERS}) as box, Connection(box.port) as connection:
        for seed in range(DENOISERS):  # both have had a task
            connection.generate({**TINY, "seed": seed}, PAUSE)
        for _ in range(effort.rounds):
            fields = {**TINY, "num_inference_steps": 4}
            ids = [
                connection.create({**fields, "seed": seed})
                for seed in range(FILL + DENOISERS * effort.count(25, 4))
            ]
            videos = [connection.wait(job_id, PAUSE)[0] for job_id in ids]
            ends = sorted(connection.timeline(video["id"])["completed_at"] for video in videos)
            rate = (len(ends) - FILL) / (ends[-1] - ends[FILL - 1])
            computed = [video["stage_durations"]["denoise"] for video in videos]
            yield Round(rate / BOUND, {"rate": rate, "bound": BOUND, "denoise": computed})


def summary(rounds: list[Round]) -> str:
    rate = middle(rounds, "rate")
    denoise = statistics.median(seconds for one in rounds for seconds in one.raw["denoise"])
    return (
        f"{rate:.2f} requests/s of {BOUND:g}, which {DENOISERS} denoisers of {DENOISE} s allow"
        f" (their sleeps took {denoise:.4f} s)"
    )
