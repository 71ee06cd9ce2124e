"""How late the orchestrator's event loop is while many clients poll it and its roles work."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from benchmarks.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.row import Effort, Round, middle
from benchmarks.system import cpu_seconds, named, running, starved_seconds

CONNECTIONS = 50
SECONDS = 8.0  # of a round
SLACK = 1.25  # the roles work for longer than is measured
END_SECONDS = 300.0
LAG = "triptych_event_loop_lag_seconds"


def measure(effort: Effort) -> Iterator[Round]:
    """The jobs are there before the first round; the roles work through them while they are polled.

    RuntimeError when a job fails.
    """
    jobs, seconds = effort.count(1000, 40), effort.count(8, 1) * SECONDS / 8
    pace = (effort.rounds + 1) * seconds * SLACK / jobs  # of the denoiser, which sleeps
    with running(f"emulated:denoise={pace:.4f}") as box, Connection(box.port) as connection:
        orchestrator = named(box, "orchestrator").pid
        ids = [connection.create({**TINY, "seed": seed}) for seed in range(jobs)]
        lag, before = _lag(box.url), cpu_seconds(orchestrator)
        time.sleep(seconds)  # without polls: what jobs and machine cost is not the polls'
        alone = (cpu_seconds(orchestrator) - before) / seconds
        unpolled = quantile(_difference(lag, _lag(box.url)), 0.99)
        rounds = []
        for _ in range(effort.rounds):
            lag, starved = _lag(box.url), starved_seconds(orchestrator)
            before, started = cpu_seconds(orchestrator), time.monotonic()
            seen = _poll(box.port, ids, effort.count(CONNECTIONS, 5), seconds)
            took = time.monotonic() - started
            used = cpu_seconds(orchestrator) - before - alone * took
            rounds.append(_round(seen, _difference(lag, _lag(box.url)), used))
            rounds[-1].raw["starved"] = (starved_seconds(orchestrator) - starved) / took
        failed = _failed(connection, ids)
    for one in rounds:
        one.raw.update(jobs_failed=failed, lag_p99_unpolled=unpolled * 1e3)
        yield one


def _poll(port: int, ids: list[str], connections: int, seconds: float) -> dict[str, Any]:
    """Polls from another process; it does not outlive this one by more than its time."""
    command = [sys.executable, "-m", "benchmarks.requests.poller", "--port", str(port)]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    run = subprocess.run(
        command, input="\n".join(ids), capture_output=True, text=True, timeout=seconds + 120, check=False
    )
    if run.returncode:
        raise RuntimeError(f"the polling clients failed:\n{run.stderr[-2000:]}")
    seen: dict[str, Any] = json.loads(run.stdout)
    return seen


def _round(seen: dict[str, Any], lag: dict[float, float], used: float) -> Round:
    """In milliseconds."""
    answers = seen["polls"] + seen["lists"]
    return Round(
        quantile(lag, 0.99) * 1e3,
        {
            "lag_p50": quantile(lag, 0.5) * 1e3,
            "lag_p99": quantile(lag, 0.99) * 1e3,
            "lag_max": quantile(lag, 1.0) * 1e3,  # the upper bound of the last bucket that has anything
            "lags": sum(lag.values()),
            "poll_p50": statistics.median(answers) * 1e3,
            "poll_p99": _percentile(answers, 0.99) * 1e3,
            "poll_max": max(answers) * 1e3,
            "list_p50": statistics.median(seen["lists"]) * 1e3 if seen["lists"] else None,
            "polls": len(answers),
            "polls_failed": len(seen["failures"]),
            "failures": seen["failures"][:10],
            "cpu_per_poll": used * 1e3 / len(answers),
        },
    )


def _lag(url: str) -> dict[float, float]:
    """Moments by how late they were at most, in seconds, as the metric counts them: those below included."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    found = re.findall(rf'^{LAG}_bucket{{le="([^"]+)"}} (\S+)$', text, re.MULTILINE)
    return {float(bound): float(count) for bound, count in found}


def _difference(before: dict[float, float], after: dict[float, float]) -> dict[float, float]:
    """What was counted between, by bucket alone."""
    counts: dict[float, float] = {}
    below = 0.0
    for bound in sorted(after):
        count = after[bound] - before[bound]
        counts[bound], below = count - below, count
    return counts


def quantile(counts: dict[float, float], share: float) -> float:
    """As Prometheus has it: values lie evenly within a bucket. Of none: 0. ``counts`` by upper bound."""
    wanted, below, lower = share * sum(counts.values()), 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count and below + count >= wanted:
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return 0.0


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def _failed(connection: Connection, ids: list[str]) -> int:
    """Waits until the roles are through with all; those that are not completed then count as failed."""
    deadline = time.monotonic() + END_SECONDS
    failed = 0
    for job_id in ids:
        video, _ = connection.wait(job_id, 0.05)
        failed += video["status"] != "completed"
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all jobs were finished within {END_SECONDS:g} s")
    return failed


def summary(rounds: list[Round]) -> str:
    def seen(name: str) -> str:
        return f"{middle(rounds, name):.1f}"

    return (
        f"lag p50 {seen('lag_p50')}, p99 {seen('lag_p99')}, at most {seen('lag_max')} ms, without polls p99"
        f" {seen('lag_p99_unpolled')}; its thread was ready and had no core"
        f" {middle(rounds, 'starved') * 1e2:.0f} % of the time;"
        f" {middle(rounds, 'polls'):.0f} polls answered after {seen('poll_p50')} ms, p99 {seen('poll_p99')};"
        f" {middle(rounds, 'cpu_per_poll'):.2f} ms of the orchestrator's CPU each;"
        f" {sum(one.raw['polls_failed'] for one in rounds)} polls and {rounds[0].raw['jobs_failed']} jobs"
        " failed"
    )
