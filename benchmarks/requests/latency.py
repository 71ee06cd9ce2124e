"""How long one request takes that waits for nothing: three emulated roles, one client."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.connection import Connection, Journey
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, running
from benchmarks.table import Spread

WARM_UP = 10
# The least there is: what remains is everything around the model, a real video file included.
TINY: dict[str, Any] = {
    "prompt": "tiny",
    "size": "16x16",
    "num_frames": 1,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
}
STAGES = ("encode", "denoise", "decode")


@dataclass
class Seen:
    """Seconds of all requests of one round, by what they were spent on."""

    totals: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, journey: Journey, timeline: dict[str, Any]) -> None:
        self.totals.append(journey.total)
        self.parts["server"].append(timeline["completed_at"] - timeline["created_at"])
        for attempt in timeline["attempts"]:
            self.parts[f"{attempt['stage']} at the orchestrator"].append(
                attempt["ended_at"] - attempt["started_at"]
            )
        for phase in journey.video["phases"]:
            self.parts[phase["name"]].append(phase["seconds"])

    def round(self, cpu: dict[str, float]) -> Round:
        """In milliseconds; ``cpu`` is what the processes used for all of them."""
        total = Spread.of([seconds * 1e3 for seconds in self.totals])
        medians = {name: statistics.median(values) * 1e3 for name, values in self.parts.items()}
        return Round(
            total.median,
            {
                "p90": total.p90,
                "medians": medians,
                "cpu": {name: seconds * 1e3 / len(self.totals) for name, seconds in cpu.items()},
                "totals": [seconds * 1e3 for seconds in self.totals],
            },
        )


def measure(embeddings: int, latents: int, requests: int) -> Callable[[Effort], Iterator[Round]]:
    """Requests one after the other, whose stages hand on so many bytes and compute nothing."""

    def rounds(effort: Effort) -> Iterator[Round]:
        model = f"emulated:embeddings={embeddings},latents={latents}"
        with running(model) as box, Connection(box.port) as connection:
            for _ in range(effort.count(WARM_UP, 2)):
                connection.sync(TINY)
            for _ in range(effort.rounds):
                seen = Seen()
                before = {process.name: cpu_seconds(process.pid) for process in box.processes}
                for seed in range(effort.count(requests, 3)):
                    journey = connection.sync({**TINY, "seed": seed})
                    seen.add(journey, connection.timeline(journey.video["id"]))
                used = {p.name.split()[0]: cpu_seconds(p.pid) - before[p.name] for p in box.processes}
                yield seen.round(used)

    return rounds


def summary(rounds: list[Round]) -> str:
    """Where the time of the middle request went, in the orchestrator's eyes."""

    def part(name: str) -> float:
        return middle(rounds, "medians", name)

    computed = sum(part(name) for name in (*STAGES, "save"))
    stages = ", ".join(f"{name} {part(f'{name} at the orchestrator'):.2f}" for name in STAGES)
    cpu = ", ".join(f"{name} {middle(rounds, 'cpu', name):.2f}" for name in rounds[0].raw["cpu"])
    return (
        f"p90 {middle(rounds, 'p90'):.2f} ms; {part('server'):.2f} ms from acceptance to completion:"
        f" {stages}, of which the stages' own work {computed:.2f} and moving tensors {part('transfer'):.2f};"
        f" CPU a request: {cpu}"
    )
