"""Requests per second with many jobs waiting over those with few, through the whole system."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

from benchmarks.requests.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.requests.row import Effort, Round, middle
from benchmarks.requests.system import START_SECONDS, cpu_seconds, named, running
from deploy.onebox import OneBox

FEW, MANY = 100, 10_000
SERVER = ("--max-queue", str(2 * MANY), "--absence-timeout", "3600")
WARM_UP = 50  # jobs of each measurement that come before those that count


class Backlog:
    """A system in which ``depth`` jobs wait whenever it is measured; between, it has no encoder."""

    def __init__(self, box: OneBox, connection: Connection, depth: int) -> None:
        self._box = box
        self._connection = connection
        self._stop()
        self._waiting = deque(self._create() for _ in range(depth))  # the order in which they are served

    def measure(self, jobs: int) -> dict[str, float]:
        """``rate``, requests finished per second, for each of which a new one is accepted; ``cpu``, what each
        costs the orchestrator in milliseconds.
        """
        orchestrator = named(self._box, "orchestrator").pid
        self._box.start_role("encoder", self._box.role_urls["encoder"][0])
        self._box.wait_ready(START_SECONDS)
        ends: list[float] = []
        before = cpu_seconds(orchestrator)
        for _ in range(WARM_UP + jobs):
            ends.append(self._finished(self._waiting.popleft()))
            self._waiting.append(self._create())
        used = (cpu_seconds(orchestrator) - before) / len(ends)
        self._stop()
        return {"rate": jobs / (ends[-1] - ends[WARM_UP - 1]), "cpu": used * 1e3}

    def _create(self) -> str:
        return self._connection.create(TINY)

    def _finished(self, job_id: str) -> float:
        video, _ = self._connection.wait(job_id)
        if video["status"] == "failed":
            raise RuntimeError(f"video {job_id} failed: {video['error']}")
        return float(self._connection.timeline(job_id)["completed_at"])

    def _stop(self) -> None:
        encoder = named(self._box, "encoder")
        encoder.terminate()
        encoder.wait(60)
        self._box.processes.remove(encoder)


def measure(effort: Effort) -> Iterator[Round]:
    """One system for each depth, measured in turn; the other one's queue stands still meanwhile."""
    with contextlib.ExitStack() as stack:
        backlogs = {}
        for name, depth in (("few", FEW), ("many", effort.count(MANY, 2 * FEW))):
            box = stack.enter_context(running("emulated:", server=SERVER))
            connection = stack.enter_context(Connection(box.port))
            backlogs[name] = Backlog(box, connection, depth)
        for turn in range(effort.rounds):
            names = sorted(backlogs, reverse=bool(turn % 2))  # neither is always the one that goes first
            seen = {name: backlogs[name].measure(effort.count(400, 20)) for name in names}
            yield Round(seen["many"]["rate"] / seen["few"]["rate"], seen)


def summary(rounds: list[Round]) -> str:
    seen = [
        f"{middle(rounds, name, 'rate'):.0f} requests/s and {middle(rounds, name, 'cpu'):.1f} ms of the"
        f" orchestrator's CPU each with {depth} waiting"
        for name, depth in (("few", FEW), ("many", MANY))
    ]
    return "; ".join(seen)
