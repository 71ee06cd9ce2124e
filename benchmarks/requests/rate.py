"""How many tiny requests the whole system gets through in a second: eight clients, three emulated roles."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import closed_loop, rate
from benchmarks.peers.systems import TriptychTarget
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, running

CLIENTS = 8
TINY_BYTES = 4096
SECONDS = 5


def measure(effort: Effort) -> Iterator[Round]:
    """Requests per second, each answered with its file; RuntimeError when one fails."""
    work = Work(TINY_BYTES, TINY_BYTES)
    with running(f"emulated:embeddings={work.embeddings},latents={work.latents}") as box:
        target = TriptychTarget(box)
        closed_loop(target, CLIENTS, seconds=1)
        for _ in range(effort.rounds):
            before = {process.name: cpu_seconds(process.pid) for process in box.processes}
            samples = closed_loop(target, CLIENTS, seconds=effort.count(SECONDS, 1))
            if failed := [sample.error for sample in samples if sample.error]:
                raise RuntimeError(f"{len(failed)} of {len(samples)} requests failed: {failed[0]}")
            used = {p.name.split()[0]: cpu_seconds(p.pid) - before[p.name] for p in box.processes}
            yield Round(
                rate(samples),
                {
                    "requests": len(samples),
                    "p50": statistics.median(sample.seconds for sample in samples) * 1e3,
                    "cpu": {name: seconds * 1e3 / len(samples) for name, seconds in used.items()},
                },
            )


def summary(rounds: list[Round]) -> str:
    cpu = ", ".join(f"{name} {middle(rounds, 'cpu', name):.2f}" for name in rounds[0].raw["cpu"])
    return f"p50 {middle(rounds, 'p50'):.1f} ms with {CLIENTS} clients; ms of CPU a request: {cpu}"
