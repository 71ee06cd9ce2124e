"""What each part of a tiny request takes by itself, and a large tensor, when nothing else is done."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.floor.beside import FloorTarget
from benchmarks.floor.clip import TINY_CLIP
from benchmarks.floor.jobs import Jobs
from benchmarks.floor.memory import LARGE, large_tensor
from benchmarks.floor.message import first_payload
from benchmarks.floor.processes import Running, floor, process
from benchmarks.floor.stream import Stream
from benchmarks.floor.video import Videos, encode
from benchmarks.peers.load import closed_loop
from benchmarks.requests.latency import TINY, WARM_UP
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds

REQUESTS = 200
LARGE_REQUESTS = 50
# How often each is part of a request.
TIMES = {"http": 1, "commits": 1, "stream": 3, "file": 1}
WHAT = {
    "http": "HTTP: a POST answered with a file that is there",
    "commits": "an insert and an update in SQLite, each committed",
    "stream": "a round trip of 4 KB on a gRPC stream",
    "file": "an MP4 file of one frame, synced",
    "encode": "of it, all but the syncs",
}
KEY = b"\x80\x40\x20\x10\x08\x04\x02\x01"
REQUEST = json.dumps({**TINY, "seed": 0})

Part = dict[str, float]


def measure(effort: Effort) -> Iterator[Round]:
    """The value is the sum of all parts of a tiny request, each as often as that has it: milliseconds."""
    with contextlib.ExitStack() as stack:
        ground = stack.enter_context(floor())
        stage = stack.enter_context(process("stage"))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-floor-")))
        jobs = stack.enter_context(contextlib.closing(Jobs(scratch / "jobs.sqlite")))
        videos = stack.enter_context(contextlib.closing(Videos(scratch)))
        parts: dict[str, Callable[[int], Part]] = {
            "http": _http(ground),
            "commits": lambda count: _repeated(lambda: _commit(jobs), count),
            "stream": lambda count: asyncio.run(_trips(*stage, count)),
            "file": lambda count: _repeated(lambda: videos.write(uuid.uuid4().hex, KEY), count),
            # Always a new file: ext4 syncs one that is written anew.
            "encode": lambda count: _repeated(
                lambda: encode(f"{scratch}/{uuid.uuid4().hex}", KEY, TINY_CLIP), count
            ),
        }
        counts = dict.fromkeys(parts, effort.count(REQUESTS, 3))
        large = stack.enter_context(large_tensor(KEY))
        parts |= {name: functools.partial(_repeated, work) for name, work in large.items()}
        counts |= dict.fromkeys(LARGE, effort.count(LARGE_REQUESTS, 3))
        for part in parts.values():
            part(effort.count(WARM_UP, 1))
        for _ in range(effort.rounds):
            seen = {name: part(counts[name]) for name, part in parts.items()}
            sums = {unit: sum(seen[name][unit] * TIMES[name] for name in TIMES) for unit in ("ms", "cpu")}
            yield Round(sums["ms"], {**seen, "sum": sums})


def _http(ground: Running) -> Callable[[int], Part]:
    """CPU is the server's: the client is no part of a request."""
    (sample,) = closed_loop(FloorTarget(ground.port), 1, requests=1)
    if sample.reply is None:
        raise RuntimeError(f"the floor: {sample.error}")
    target = FloorTarget(ground.port, f"/http?job={sample.reply.video_id}")

    def part(count: int) -> Part:
        before = cpu_seconds(ground.pids["server"])
        samples = closed_loop(target, 1, requests=count)
        used = cpu_seconds(ground.pids["server"]) - before
        if failed := [one.error for one in samples if one.error]:
            raise RuntimeError(f"the floor: {len(failed)} of {count} requests failed: {failed[0]}")
        return _part([one.seconds for one in samples], used)

    return part


def _commit(jobs: Jobs) -> None:
    job = uuid.uuid4().hex
    jobs.add(job, REQUEST)
    jobs.complete(job, f"{job}.mp4")


async def _trips(pid: int, port: int, count: int) -> Part:
    """CPU of both ends."""
    stream = Stream(port)
    payload = first_payload(TINY["prompt"])
    try:
        await stream.work(uuid.uuid4().hex, payload)  # the connection is there
        seconds = []
        pids = (pid, os.getpid())
        before = sum(map(cpu_seconds, pids))
        for _ in range(count):
            started = time.monotonic()
            await stream.work(uuid.uuid4().hex, payload)
            seconds.append(time.monotonic() - started)
        return _part(seconds, sum(map(cpu_seconds, pids)) - before)
    finally:
        await stream.close()


def _repeated(work: Callable[[], object], count: int) -> Part:
    """CPU of this process, with the encoder's threads."""
    seconds = []
    before = cpu_seconds(os.getpid())
    for _ in range(count):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return _part(seconds, cpu_seconds(os.getpid()) - before)


def _part(seconds: list[float], used: float) -> Part:
    """Milliseconds: the median, and those of CPU."""
    return {"ms": statistics.median(seconds) * 1e3, "cpu": used * 1e3 / len(seconds)}


def summary(rounds: list[Round]) -> str:
    parts = ", ".join(
        f"{name} {middle(rounds, name, 'ms'):.2f} ({middle(rounds, name, 'cpu'):.2f} of CPU)"
        for name in (*WHAT, *LARGE)
    )
    return f"ms each: {parts}; the stream three times: {middle(rounds, 'sum', 'cpu'):.2f} of CPU in all"
