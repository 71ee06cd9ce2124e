"""What three stages without compute cost on Triptych and on its peers, in turns, by payload."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import Sample, closed_loop, rate
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.row import Effort, Report, Round
from benchmarks.table import Spread, markdown, number

MANY = 8  # clients, beside one
SECONDS = 6  # of each load
WARM_UP = 10
OURS = SYSTEMS[0].name


def measure(embeddings: int, latents: int) -> Callable[[Effort], Iterator[Round]]:
    """The value of a round is Triptych's median latency with one client, in milliseconds. Each system is
    alone on the machine while it is measured: it is started and stopped in each round, and each round begins
    with another.
    """

    def rounds(effort: Effort) -> Iterator[Round]:
        work = Work(embeddings, latents)
        systems = [system for system in SYSTEMS if system.installed()]
        for turn in range(effort.rounds):
            start = turn % len(systems)
            order = systems[start:] + systems[:start]
            seen = {system.name: _measure(system, work, effort) for system in order}
            yield Round(seen[OURS]["one"]["p50"], seen)

    return rounds


def _measure(system: System, work: Work, effort: Effort) -> dict[str, Any]:
    seconds = effort.count(SECONDS, 1) if not effort.quick else 0.3
    with system.start(work) as target:
        closed_loop(target, MANY, requests=effort.count(WARM_UP * MANY, MANY))
        one = closed_loop(target, 1, seconds=seconds)
        many = closed_loop(target, MANY, seconds=seconds)
    return {"one": _figures(system, one), "many": _figures(system, many)}


def _figures(system: System, samples: list[Sample]) -> dict[str, float]:
    """Milliseconds, and answers per second. RuntimeError when a request failed: that is no figure."""
    if failed := [sample.error for sample in samples if sample.error]:
        raise RuntimeError(f"{system.name}: {len(failed)} of {len(samples)} requests failed: {failed[0]}")
    latencies = [sample.seconds * 1e3 for sample in samples]
    spread = Spread.of(latencies if len(latencies) > 1 else latencies * 2)
    return {
        "requests": len(samples),
        "p50": spread.median,
        "p10": spread.p10,
        "p90": spread.p90,
        "rate": rate(samples),
    }


def over_peers(rounds: Sequence[Round], clients: str, figure: str) -> dict[str, float]:
    """By peer: the median over the rounds of Triptych's figure over the peer's of the same round."""
    peers = [name for name in rounds[0].raw if name != OURS]
    return {
        peer: statistics.median(
            one.raw[OURS][clients][figure] / one.raw[peer][clients][figure] for one in rounds
        )
        for peer in peers
    }


def summary(rounds: list[Round]) -> str:
    latency, rates = over_peers(rounds, "one", "p50"), over_peers(rounds, "many", "rate")
    if not latency:
        return "no peer is installed: make peers"
    return "; ".join(
        f"over {peer}: latency x {number(latency[peer])}, req/s of {MANY} clients x {number(rates[peer])}"
        for peer in latency
    )


HEADING = (
    "payload", "system", "p50 ms, 1 client", "rounds", "req/s, 1", f"p50 ms, {MANY}", f"req/s, {MANY}",
    "rounds", "latency, Triptych's over it", "req/s, Triptych's over it",
)  # fmt: skip


def table(reports: Sequence[Report]) -> str:
    """A line for each payload and system: medians over the rounds, and their range."""
    lines = []
    for report in reports:
        latency = over_peers(report.rounds, "one", "p50")
        rates = over_peers(report.rounds, "many", "rate")
        for name in sorted(report.rounds[0].raw, key=[system.name for system in SYSTEMS].index):
            lines.append(
                [
                    report.row.what,
                    name,
                    *_cells(report.rounds, name, "one", "p50"),
                    _cells(report.rounds, name, "one", "rate")[0],
                    _cells(report.rounds, name, "many", "p50")[0],
                    *_cells(report.rounds, name, "many", "rate"),
                    f"x {number(latency[name])}" if name in latency else "",
                    f"x {number(rates[name])}" if name in rates else "",
                ]
            )
    return markdown(HEADING, lines)


def _cells(rounds: Sequence[Round], name: str, clients: str, figure: str) -> tuple[str, str]:
    values = [one.raw[name][clients][figure] for one in rounds]
    return number(statistics.median(values)), f"{number(min(values))}..{number(max(values))}"
