"""Requests per second, and the orchestrator's CPU for each, by jobs that wait and instances there are."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.row import Effort, Report, Round, middle
from benchmarks.scheduler import swarm
from benchmarks.system import QUIET, START_SECONDS, cpu_seconds, until_ready
from benchmarks.table import markdown, number
from deploy.onebox import ROLES, Process
from deploy.ports import free_port

DEPTHS = (100, 1_000, 10_000)
SERVER = (*QUIET, "--max-queue", str(2 * DEPTHS[-1]), "--absence-timeout", "3600")
TURNS = 10  # of each depth in a round: a machine that others use is faster in one second than in another
JOBS = 100  # that are timed in each
WARM_UP = 25
MAX_WINDOW = DEPTHS[0] // 2  # or fewer would wait than are said to


class System:
    """An orchestrator with jobs in SQLite, as users run it, and a swarm that serves only while measured."""

    def __init__(
        self, orchestrator: Process, swarm: swarm.Swarm, connection: Connection, window: int
    ) -> None:
        """``window`` videos are made at once."""
        self._orchestrator = orchestrator
        self._swarm = swarm
        self._connection = connection
        self._window = window
        self._waiting = 0

    def fill(self, depth: int) -> None:
        while self._waiting < depth:
            self._connection.create(TINY)
            self._waiting += 1

    def measure(self, jobs: int) -> dict[str, float]:
        """``done`` are the requests finished in ``seconds``, for each of which a new one is accepted before
        another may be made, so that as many wait at the end as at the start; ``cpu`` is what they cost the
        orchestrator, in seconds.
        """
        self._swarm.permit(self._window)
        self._serve(WARM_UP)
        used, started = cpu_seconds(self._orchestrator.pid), time.monotonic()
        done = self._serve(jobs)
        seconds, used = time.monotonic() - started, cpu_seconds(self._orchestrator.pid) - used
        self._serve(self._window, further=False)  # what is still permitted
        return {"done": done, "seconds": seconds, "cpu": used}

    def _serve(self, jobs: int, further: bool = True) -> int:
        done = 0
        while done < jobs:
            ended = self._swarm.wait()
            done += ended
            for _ in range(ended):
                self._connection.create(TINY)
                self._swarm.permit(further)
        return done


def measure(instances: int) -> Callable[[Effort], Iterator[Round]]:
    """With so many instances of each role; the value of a round is the rate with the most jobs waiting over
    that with the fewest. One system for each depth, measured in turn; the others stand still meanwhile.
    """

    def rounds(effort: Effort) -> Iterator[Round]:
        depths = [depth for depth in DEPTHS if depth <= effort.count(DEPTHS[-1], DEPTHS[1])]
        with contextlib.ExitStack() as stack:
            systems = {depth: stack.enter_context(_running(instances)) for depth in depths}
            for depth, system in systems.items():
                with_encoders = instances * swarm.CAPACITY  # these do not wait
                system.fill(depth + with_encoders)
            for _ in range(effort.rounds):
                slices: dict[int, list[dict[str, float]]] = {depth: [] for depth in depths}
                for turn in range(effort.count(TURNS, 1)):
                    # None is always the one that goes first.
                    for depth in sorted(systems, reverse=bool(turn % 2)):
                        slices[depth].append(systems[depth].measure(effort.count(JOBS, 20)))
                seen = {str(depth): _figures(slices[depth]) for depth in depths}
                yield Round(seen[str(depths[-1])]["rate"] / seen[str(depths[0])]["rate"], seen)

    return rounds


def _figures(slices: Sequence[dict[str, float]]) -> dict[str, float]:
    """``rate`` in requests per second, ``cpu`` in milliseconds of the orchestrator for each."""
    sums = {name: sum(one[name] for one in slices) for name in slices[0]}
    return {"rate": sums["done"] / sums["seconds"], "cpu": sums["cpu"] * 1e3 / sums["done"]}


@contextlib.contextmanager
def _running(instances: int) -> Iterator[System]:
    port = free_port()
    ports = {role: [free_port() for _ in range(instances)] for role in ROLES}
    with (
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch,
        (Path(scratch) / "log").open("wb") as log,
        swarm.running(ports) as instances_of_all,
    ):
        words = ["orchestrator", "--port", str(port), "--data-dir", scratch, *SERVER]
        for role, given in ports.items():
            words += [f"--{role}-urls", *(f"grpc://127.0.0.1:{one}" for one in given)]
        with Process("orchestrator", words, log) as orchestrator, Connection(port) as connection:
            try:
                until_ready(port, orchestrator, START_SECONDS)
                window = min(MAX_WINDOW, len(ROLES) * instances * swarm.CAPACITY)
                yield System(orchestrator, instances_of_all, connection, window)
            finally:
                orchestrator.kill()


def summary(rounds: list[Round]) -> str:
    seen = [
        f"{middle(rounds, depth, 'rate'):.0f} requests/s, {middle(rounds, depth, 'cpu'):.2f} ms of CPU each"
        f" with {depth} waiting"
        for depth in rounds[0].raw
    ]
    return "; ".join(seen)


HEADING = ("instances", "waiting", "requests/s", "range", "orchestrator CPU ms a request", "others")


def table(reports: Sequence[Report]) -> str:
    """A line for each number of instances and of waiting jobs."""
    lines = []
    for report in reports:
        for depth in report.rounds[0].raw:
            rates = [one.raw[depth]["rate"] for one in report.rounds]
            lines.append(
                [
                    report.row.what,
                    depth,
                    number(middle(report.rounds, depth, "rate")),
                    f"{number(min(rates))}..{number(max(rates))}",
                    number(middle(report.rounds, depth, "cpu")),
                    number(report.others),
                ]
            )
    return markdown(HEADING, lines)
