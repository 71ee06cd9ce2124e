"""Throughput at saturation on the same cores: roles that share them, against a fused process on each."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.connection import Connection
from benchmarks.row import Effort, Round, middle
from benchmarks.split import fused, models
from benchmarks.system import running

REQUESTS = 4  # for each core
PAUSE = 0.05  # between two polls


def measure(effort: Effort) -> Iterator[Round]:
    """The value of a round is split's requests per second over fused's. Split has an encoder, and a denoiser
    and a decoder for each core, all of which may use every core; fused a process pinned to each core.
    """
    cores = sorted(os.sched_getaffinity(0))[:4]
    jobs = len(cores) * effort.count(REQUESTS, 1)
    counts = {"denoiser": len(cores), "decoder": len(cores)}
    with models.drawing(effort) as model:
        for turn in range(effort.rounds):
            requests = [{**model.fields, "seed": turn * jobs + number} for number in range(jobs)]
            with running(str(model.folder), counts, roles=models.ROLES, encoder=models.ENCODER) as box:
                for process in box.processes:
                    os.sched_setaffinity(process.pid, cores)
                split = _split(box.port, len(cores), requests)
            yield _round(split, _fused(model, cores, requests))


def _split(port: int, warm_up: int, requests: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first request to the last video."""
    with Connection(port) as connection:
        for job_id in [connection.create(request) for request in requests[:warm_up]]:
            _finished(connection, job_id)
        started = time.monotonic()
        for job_id in [connection.create(request) for request in requests]:
            _finished(connection, job_id)
        return (time.monotonic() - started) / len(requests)


def _finished(connection: Connection, job_id: str) -> None:
    video, _ = connection.wait(job_id, PAUSE)
    if video["status"] != "completed":
        raise RuntimeError(f"video {job_id} failed: {video['error']}")


def _fused(model: models.Model, cores: Sequence[int], requests: Sequence[dict[str, Any]]) -> float:
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch, contextlib.ExitStack() as stack:
        processes = []
        for core in cores:
            process = stack.enter_context(fused.running(model.folder, models.THREADS))
            os.sched_setaffinity(process.pid, [core])
            processes.append(process)
        waiting = list(requests)

        def work(process: fused.Fused, given: list[dict[str, Any]]) -> None:
            while given:
                process.generate(given.pop(), Path(scratch) / f"{process.pid}.mp4")

        with ThreadPoolExecutor(len(processes)) as threads:
            list(threads.map(lambda process: work(process, [requests[0]]), processes))
            started = time.monotonic()
            list(threads.map(lambda process: work(process, waiting), processes))
            return (time.monotonic() - started) / len(requests)


def _round(split: float, fused: float) -> Round:
    return Round(fused / split, {"split": 1 / split, "fused": 1 / fused})


def summary(rounds: list[Round]) -> str:
    return f"split {middle(rounds, 'split'):.3f} requests/s, fused {middle(rounds, 'fused'):.3f}, same cores"
