"""The floor and Triptych under the same load, in turns."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.floor.processes import floor
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import Sample, closed_loop, rate
from benchmarks.peers.systems import TriptychTarget, ask_for_video
from benchmarks.peers.target import Reply, Target
from benchmarks.requests.latency import WARM_UP
from benchmarks.requests.rate import CLIENTS, TINY_BYTES
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, running
from benchmarks.table import Spread, number

REQUESTS = 100  # of one client
SECONDS = 5  # of many
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


def one(effort: Effort) -> Iterator[Round]:
    """The value is the floor's p50 in milliseconds, of one request at a time."""
    requests = effort.count(REQUESTS, 3)
    yield from _rounds(effort, "p50", 0, lambda target: closed_loop(target, 1, requests=requests))


def many(effort: Effort) -> Iterator[Round]:
    """The value is the floor's requests per second."""
    seconds = effort.count(SECONDS, 1)
    threads = os.cpu_count() or 1
    yield from _rounds(effort, "rate", threads, lambda target: closed_loop(target, CLIENTS, seconds=seconds))


def _rounds(
    effort: Effort, figure: str, threads: int, load: Callable[[Target], list[Sample]]
) -> Iterator[Round]:
    """Both are there all the time, and idle while the other is measured; each round begins with another.
    So many ``threads`` write the floor's videos.
    """
    work = Work(TINY_BYTES, TINY_BYTES)
    model = f"emulated:embeddings={work.embeddings},latents={work.latents}"
    with running(model) as box, floor(threads) as ground:
        targets: dict[str, Target] = {"floor": FloorTarget(ground.port), "triptych": TriptychTarget(box)}
        pids = {
            "floor": ground.pids,
            "triptych": {process.name.split()[0]: process.pid for process in box.processes},
        }
        for target in targets.values():
            closed_loop(target, CLIENTS, requests=effort.count(WARM_UP * CLIENTS, CLIENTS))
        for turn in range(effort.rounds):
            order = SYSTEMS if turn % 2 == 0 else SYSTEMS[::-1]
            seen: dict[str, Any] = {name: _measured(targets[name], pids[name], load) for name in order}
            yield Round(
                seen["floor"][figure], {**seen, "ratio": seen["triptych"][figure] / seen["floor"][figure]}
            )


def _measured(
    target: Target, pids: Mapping[str, int], load: Callable[[Target], list[Sample]]
) -> dict[str, Any]:
    """Milliseconds a request, and answers per second. RuntimeError when a request failed."""
    watched = {**pids, CLIENT: os.getpid()}
    before = {name: cpu_seconds(pid) for name, pid in watched.items()}
    samples = load(target)
    used = {name: cpu_seconds(pid) - before[name] for name, pid in watched.items()}
    if failed := [sample.error for sample in samples if sample.error]:
        raise RuntimeError(f"{target.name}: {len(failed)} of {len(samples)} requests failed: {failed[0]}")
    spread = Spread.of([sample.seconds * 1e3 for sample in samples])
    return {
        "requests": len(samples),
        "p50": spread.median,
        "p90": spread.p90,
        "rate": rate(samples),
        "cpu": {name: seconds * 1e3 / len(samples) for name, seconds in used.items()},
    }


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
