"""The floor and Triptych under the same load, in turns."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks.floor.processes import Running
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import Sample, rate
from benchmarks.peers.systems import TriptychTarget, ask_for_video
from benchmarks.peers.target import Reply, Target
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, running
from benchmarks.table import Spread, number

SYSTEMS = ("floor", "triptych")
CLIENT = "client"  # this process: on a machine of few cores its time counts too


@dataclass(frozen=True)
class FloorTarget:
    """A floor that serves, as its clients see it."""

    port: int
    path: str = "/v1/videos/sync"
    name: str = "floor"

    def request(self, connection: http.client.HTTPConnection, number: int) -> Reply:
        return ask_for_video(connection, number, self.path)


@dataclass(frozen=True)
class Side:
    """One of the two, with the ids of its processes; ``server`` names the one that clients talk to."""

    target: Target
    pids: Mapping[str, int]
    server: str


@contextlib.contextmanager
def both(ground: AbstractContextManager[Running], work: Work) -> Iterator[dict[str, Side]]:
    """Triptych beside the floor, by the names of ``SYSTEMS``; its stages hand on what ``work`` says."""
    model = f"emulated:embeddings={work.embeddings},latents={work.latents}"
    with running(model) as box, ground as least:
        ours = {process.name.split()[0]: process.pid for process in box.processes}
        yield {
            "floor": Side(FloorTarget(least.port), least.pids, "server"),
            "triptych": Side(TriptychTarget(box), ours, "orchestrator"),
        }


def in_turns(
    effort: Effort, sides: Mapping[str, Side], figure: str, measured: Callable[[Side], dict[str, Any]]
) -> Iterator[Round]:
    """One is idle while the other is measured; each round begins with another. The value is the floor's
    ``figure``.
    """
    for turn in range(effort.rounds):
        order = SYSTEMS if turn % 2 == 0 else SYSTEMS[::-1]
        seen = {name: measured(sides[name]) for name in order}
        yield Round(
            seen["floor"][figure], {**seen, "ratio": seen["triptych"][figure] / seen["floor"][figure]}
        )


def under_load(side: Side, load: Callable[[Target], list[Sample]]) -> dict[str, Any]:
    """Milliseconds a request, and answers per second. RuntimeError when a request failed."""
    with cpu_used(side) as used:
        samples = load(side.target)
    if failed := [sample.error for sample in samples if sample.error]:
        raise RuntimeError(
            f"{side.target.name}: {len(failed)} of {len(samples)} requests failed: {failed[0]}"
        )
    spread = Spread.of([sample.seconds * 1e3 for sample in samples])
    return {
        "requests": len(samples),
        "p50": spread.median,
        "p90": spread.p90,
        "rate": rate(samples),
        "cpu": {name: seconds * 1e3 / len(samples) for name, seconds in used.items()},
    }


@contextlib.contextmanager
def cpu_used(side: Side) -> Iterator[dict[str, float]]:
    """Seconds by process, the client's too, when it is over."""
    used: dict[str, float] = {}
    watched = {**side.pids, CLIENT: os.getpid()}
    before = {name: cpu_seconds(pid) for name, pid in watched.items()}
    yield used
    used.update({name: cpu_seconds(pid) - before[name] for name, pid in watched.items()})


def cpu_of(raw: Mapping[str, Any]) -> float:
    """Of all processes of a system, without the client's, in milliseconds a request."""
    return float(sum(used for name, used in raw["cpu"].items() if name != CLIENT))


def summary(figure: str, unit: str) -> Callable[[list[Round]], str]:
    """What Triptych had, and what a request costs both."""

    def line(rounds: list[Round]) -> str:
        cpu = {
            system: ", ".join(
                f"{name} {middle(rounds, system, 'cpu', name):.2f}" for name in rounds[0].raw[system]["cpu"]
            )
            for system in SYSTEMS
        }
        return (
            f"Triptych {number(middle(rounds, 'triptych', figure))} {unit},"
            f" x {number(middle(rounds, 'ratio'))};"
            f" ms of CPU a request: {cpu['floor']}; Triptych's: {cpu['triptych']}"
        )

    return line
