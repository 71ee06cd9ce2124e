"""What a video costs the floor's server and Triptych's orchestrator: their CPU time while it is made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.connection import Connection
from benchmarks.floor.beside import SYSTEMS, Side, both, cpu_used, in_turns, summary
from benchmarks.floor.clip import Clip
from benchmarks.floor.processes import floor
from benchmarks.peers.apps.stages import Work
from benchmarks.requests.cost import POLL_SECONDS, QUICK, WAN_480P
from benchmarks.requests.rows import WAN
from benchmarks.row import Effort, Round, middle

VIDEOS = 5


def measure(effort: Effort) -> Iterator[Round]:
    """The value is the server's CPU time per video in milliseconds. All that it does counts: accepting,
    storing, answering four polls a second, and what it uses while it waits.
    """
    fields = QUICK if effort.quick else WAN_480P
    videos = effort.count(VIDEOS, 1)
    work = Work(*WAN)
    # On a thread the decoder's event loop is not held up, as it is not in Triptych's.
    with both(floor(1, Clip.of(fields), work), work) as sides:
        for side in sides.values():
            _measured(side, fields, 1)
        yield from in_turns(effort, sides, "server", lambda side: _measured(side, fields, videos))


def _measured(side: Side, fields: dict[str, Any], videos: int) -> dict[str, Any]:
    """In milliseconds a video."""
    with Connection(side.target.port) as connection:
        started = time.monotonic()
        with cpu_used(side) as used:
            journeys = [connection.generate({**fields, "seed": i}, POLL_SECONDS) for i in range(videos)]
        seconds = time.monotonic() - started
    cpu = {name: one * 1e3 / videos for name, one in used.items()}
    return {
        "videos": videos,
        "server": cpu[side.server],
        "seconds_per_video": seconds / videos,
        "polls": sum(journey.polls for journey in journeys) / videos,
        "cpu": cpu,
    }


def line(rounds: list[Round]) -> str:
    """What Triptych's used, and what both saw."""
    seen = " against ".join(
        f"{middle(rounds, system, 'seconds_per_video'):.2f} s and {middle(rounds, system, 'polls'):.1f} polls"
        for system in SYSTEMS
    )
    return f"{summary('server', 'ms')(rounds)}; a video took {seen}"
