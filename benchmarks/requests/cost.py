"""What the orchestrator spends on a video: its CPU time while decoders write real frames into real files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.connection import Connection
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, named, running

WAN_480P: dict[str, Any] = {"prompt": "cost", "size": "832x480", "num_frames": 81, "guidance_scale": 1.0}
QUICK: dict[str, Any] = {**WAN_480P, "size": "64x64", "num_frames": 5}
MODEL = "emulated:embeddings=8388608,latents=8386560"  # two of [1, 512, 4096] bf16; [1, 16, 21, 60, 104] f32
POLL_SECONDS = 0.25
IDLE_SECONDS = 5.0


def measure(effort: Effort) -> Iterator[Round]:
    """All that it does counts: accepting, storing, dispatching, answering four polls a second."""
    fields = QUICK if effort.quick else WAN_480P
    with running(MODEL) as box, Connection(box.port) as connection:
        pid = named(box, "orchestrator").pid
        connection.generate(fields)
        before = cpu_seconds(pid)
        time.sleep(effort.count(1, 0) * IDLE_SECONDS)
        idle = (cpu_seconds(pid) - before) / IDLE_SECONDS
        for _ in range(effort.rounds):
            before, started = cpu_seconds(pid), time.monotonic()
            videos = effort.count(5, 1)
            journeys = [connection.generate({**fields, "seed": i}, POLL_SECONDS) for i in range(videos)]
            used = (cpu_seconds(pid) - before) / videos
            yield Round(
                used * 1e3,
                {
                    "videos": videos,
                    "seconds_per_video": (time.monotonic() - started) / videos,
                    "polls": sum(journey.polls for journey in journeys) / videos,
                    "idle_ms_per_second": idle * 1e3,
                },
            )


def summary(rounds: list[Round]) -> str:
    return (
        f"{middle(rounds, 'seconds_per_video'):.2f} s and {middle(rounds, 'polls'):.1f} polls a video;"
        f" idle it uses {middle(rounds, 'idle_ms_per_second'):.2f} ms a second, which is counted too"
    )
