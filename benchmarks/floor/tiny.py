"""Tiny requests to the floor and to Triptych: of one client, and of many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from benchmarks.floor.beside import both, in_turns, under_load
from benchmarks.floor.processes import floor
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import Sample, closed_loop
from benchmarks.peers.target import Target
from benchmarks.requests.latency import WARM_UP
from benchmarks.requests.rate import CLIENTS, TINY_BYTES
from benchmarks.row import Effort, Round

REQUESTS = 100  # of one client
SECONDS = 5  # of many


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
    """So many ``threads`` write the floor's videos."""
    with both(floor(threads), Work(TINY_BYTES, TINY_BYTES)) as sides:
        for side in sides.values():
            closed_loop(side.target, CLIENTS, requests=effort.count(WARM_UP * CLIENTS, CLIENTS))
        yield from in_turns(effort, sides, figure, lambda side: under_load(side, load))
