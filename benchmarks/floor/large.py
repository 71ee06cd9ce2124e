"""Requests with large tensors to the floor and to Triptych, of one client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.floor.beside import both, in_turns, under_load
from benchmarks.floor.processes import floor
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import closed_loop
from benchmarks.requests.latency import WARM_UP
from benchmarks.row import Effort, Round

REQUESTS = 50


def measure(embeddings: int, latents: int) -> Callable[[Effort], Iterator[Round]]:
    """The value is the floor's p50 in milliseconds, of one request at a time."""
    work = Work(embeddings, latents)

    def rounds(effort: Effort) -> Iterator[Round]:
        requests = effort.count(REQUESTS, 3)
        with both(floor(tensors=work), work) as sides:
            for side in sides.values():
                # Then all memory is mapped, too.
                under_load(side, lambda target: closed_loop(target, 1, requests=effort.count(WARM_UP, 2)))
            yield from in_turns(
                effort,
                sides,
                "p50",
                lambda side: under_load(side, lambda target: closed_loop(target, 1, requests=requests)),
            )

    return rounds
