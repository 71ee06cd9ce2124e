"""How close the system comes to what its slowest stage allows: emulated stages, roles in several ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.row import Effort, Round, middle
from benchmarks.system import running
from deploy.onebox import ROLES

STEPS = 4
PAUSE = 0.05  # between two polls
SECONDS = 20  # that a round takes at the bound
# The sizes that Wan has at 480p and 81 frames. Tensors are made and hashed by the stages, on top of their
# sleeps: with larger ones that would show as if it were the scheduler's.
SIZES = "embeddings=8388608,latents=8386560"


@dataclass(frozen=True)
class Ratio:
    """How many there are of each role, and the seconds that each stage sleeps."""

    counts: tuple[int, int, int]
    sleeps: tuple[float, float, float]

    @property
    def bound(self) -> float:
        """Requests per second that the slowest stage allows."""
        return min(count / seconds for count, seconds in zip(self.counts, self.sleeps, strict=True))

    @property
    def model(self) -> str:
        encode, denoise, decode = self.sleeps
        return f"emulated:encode={encode},denoise={denoise},decode={decode},{SIZES}"


def measure(ratio: Ratio) -> Callable[[Effort], Iterator[Round]]:
    """Accepted all at once; the rate of their ends, from when all stages have something to do."""
    fill = sum(ratio.counts)  # requests that end before the pipeline is full

    def rounds(effort: Effort) -> Iterator[Round]:
        counts = dict(zip(ROLES, ratio.counts, strict=True))
        with running(ratio.model, counts) as box, Connection(box.port) as connection:
            warm = [connection.create({**TINY, "seed": seed}) for seed in range(2 * fill)]
            for job_id in warm:  # every instance has had a task
                connection.wait(job_id, PAUSE)
            for _ in range(effort.rounds):
                jobs = fill + round(ratio.bound * effort.count(SECONDS, 2))
                fields = {**TINY, "num_inference_steps": STEPS}
                ids = [connection.create({**fields, "seed": seed}) for seed in range(jobs)]
                videos = [connection.wait(job_id, PAUSE)[0] for job_id in ids]
                ends = sorted(connection.timeline(video["id"])["completed_at"] for video in videos)
                rate = (len(ends) - fill) / (ends[-1] - ends[fill - 1])
                denoised = [video["stage_durations"]["denoise"] for video in videos]
                yield Round(rate / ratio.bound, {"rate": rate, "bound": ratio.bound, "denoise": denoised})

    return rounds


def summary(rounds: list[Round]) -> str:
    denoise = statistics.median(seconds for one in rounds for seconds in one.raw["denoise"])
    return (
        f"{middle(rounds, 'rate'):.2f} requests/s of {middle(rounds, 'bound'):g}, which the slowest stage's"
        f" sleeps allow; a denoiser's took {denoise:.4f} s in all"
    )
