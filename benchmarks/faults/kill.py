"""One of two denoisers is killed while four clients keep both busy: Triptych and its peers, in turns."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.connection import Connection
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import Sample, closed_loop
from benchmarks.peers.systems import System, TriptychTarget
from benchmarks.peers.target import Target
from benchmarks.row import Effort, Report, Round
from benchmarks.table import markdown, number
from deploy.onebox import Process

CLIENTS = 4
DENOISE = 0.2
WORK = Work(4096, 4096, DENOISE, denoisers=2)
BEFORE, AFTER = 5.0, 30.0  # seconds of load on either side of the kill
WINDOW = 2.0
FULL = 0.9  # of the rate before


def measure(system: System) -> Callable[[Effort], Iterator[Round]]:
    """The value of a round is how many requests failed or were answered wrongly; each has one kill."""

    def rounds(effort: Effort) -> Iterator[Round]:
        before, after = effort.count(5, 1) * BEFORE / 5, effort.count(4, 1) * AFTER / 4
        for _ in range(effort.rounds):
            with system.start(WORK) as target:
                closed_loop(target, CLIENTS, requests=2 * CLIENTS)
                yield _round(*_storm(target, before, after), target)

    return rounds


def _storm(target: Target, before: float, after: float) -> tuple[list[Sample], float]:
    """The requests, and the moment of the kill."""
    last: list[int] = []

    def remember(sample: Sample) -> None:
        if sample.reply is not None and sample.reply.denoiser is not None:
            last.append(sample.reply.denoiser)

    # The load in a thread, the kill here: a process is told to end when the thread ends that has started it.
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(closed_loop, target, CLIENTS, seconds=before + after, on_sample=remember)
        time.sleep(before)
        killed = time.monotonic()
        if isinstance(target, TriptychTarget):
            _kill_denoiser(target)
        else:  # the denoiser that has ended a request last, and has been given another since
            os.kill(last[-1], signal.SIGKILL)
        return load.result(), killed


def _kill_denoiser(target: TriptychTarget) -> None:
    """And starts it again, as a supervisor does (systemd, Kubernetes); the peers have theirs built in."""
    box = target.box
    victim: Process = next(process for process in box.processes if process.name.startswith("denoiser"))
    victim.kill()
    victim.wait()
    box.processes.remove(victim)
    box.start_role(*victim.name.split())


def _round(samples: list[Sample], killed: float, target: Target) -> Round:
    failed = [sample.error for sample in samples if sample.error is not None]
    wrong = _wrong(samples, target) if isinstance(target, TriptychTarget) else 0
    calm = [sample.seconds for sample in samples if sample.ended < killed]
    stormy = [sample.seconds for sample in samples if sample.ended >= killed]
    ends = [sample.ended for sample in samples if sample.error is None]
    return Round(
        len(failed) + wrong,
        {
            "requests": len(samples),
            "failures": failed,
            "wrong": wrong,
            "slowest_before": max(calm),
            "slowest": max(stormy),
            "full_rate_after": full_rate_after(ends, killed, len(calm) / _span(samples, killed)),
            "ends": [end - killed for end in ends],
        },
    )


def _span(samples: Sequence[Sample], killed: float) -> float:
    return killed - min(sample.started for sample in samples)


def full_rate_after(ends: Sequence[float], killed: float, rate: float) -> float | None:
    """Seconds from the kill to the beginning of the first time that has nearly the usual number of ends; None
    when there was none until the load was over.
    """
    for start in (killed, *(end for end in sorted(ends) if end > killed)):
        if start + WINDOW > max(ends):
            return None
        if sum(start <= end < start + WINDOW for end in ends) >= FULL * rate * WINDOW:
            return start - killed
    return None


def _wrong(samples: Sequence[Sample], target: TriptychTarget) -> int:
    """Equal requests have equal frames: how many have others than most. The peers' answers have been checked
    against a digest already, and a wrong one is a failure.
    """
    frames: dict[str, list[str]] = {}
    with Connection(target.port) as connection:
        for sample in samples:
            if sample.reply is not None:
                video: dict[str, Any] = connection.call("GET", f"/videos/{sample.reply.video_id}")
                frames.setdefault(video["prompt"], []).append(video["frames_xxh3"])
    return sum(len(seen) - max(map(seen.count, seen)) for seen in frames.values())


def summary(rounds: list[Round]) -> str:
    reasons = {reason[:60] for one in rounds for reason in one.raw["failures"]}
    return (
        f"{len(rounds)} kills over {sum(one.raw['requests'] for one in rounds)} requests:"
        f" {sum(len(one.raw['failures']) for one in rounds)} failed,"
        f" {sum(one.raw['wrong'] for one in rounds)} wrong{''.join(f'; {reason}' for reason in reasons)}"
    )


HEADING = ("system", "kills", "requests", "failed", "wrong", "slowest s", "before s", "full rate after s")


def table(reports: Sequence[Report]) -> str:
    """A line for each system; the slowest of all, and the median time to full rate with its range."""
    return markdown(HEADING, [_line(report) for report in reports])


def _line(report: Report) -> list[str]:
    seen = [one.raw for one in report.rounds]
    back = [one["full_rate_after"] for one in seen if one["full_rate_after"] is not None]
    late = f" ({len(seen) - len(back)} not at all)" if len(back) < len(seen) else ""
    full = f"{number(statistics.median(back))} ({number(min(back))}..{number(max(back))})" if back else "-"
    return [
        report.row.name,
        str(len(seen)),
        str(sum(one["requests"] for one in seen)),
        str(sum(len(one["failures"]) for one in seen)),
        str(sum(one["wrong"] for one in seen)),
        number(max(one["slowest"] for one in seen)),
        number(max(one["slowest_before"] for one in seen)),
        full + late,
    ]
