"""A load for people: a line that follows it, and the tables at its end."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque

from orchestrator.bench.outcome import SHARES, Distribution, Outcome, Summary

RECENT = 100  # requests whose median the line shows
SECONDS_BETWEEN = (0.2, 10.0)  # two lines: on a terminal, where they replace each other, and elsewhere


class Progress:
    """On stderr; a line that is drawn again on a terminal, elsewhere one every ten seconds."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._completed = self._failed = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def ended(self, outcome: Outcome) -> None:
        if outcome.failure is None:
            self._completed += 1
            self._recent.append(outcome.latency)
        else:
            self._failed += 1

    def show(self, in_flight: int) -> None:
        """If it is time for it."""
        now = time.monotonic()
        if now - self._shown >= SECONDS_BETWEEN[0 if self._terminal else 1]:
            self._shown = now
            self._write(self.line(now - self._started, in_flight))

    def line(self, elapsed: float, in_flight: int) -> str:
        of = "" if self._total is None else f"/{self._total}"
        median = f"  p50 {statistics.median(self._recent):.2f} s" if self._recent else ""
        return (
            f"{elapsed:7.1f} s  {in_flight} in flight  {self._completed}{of} completed"
            f"  {self._failed} failed  {self._completed / max(elapsed, 0.001):.2f}/s{median}"
        )

    def end(self) -> None:
        if self._terminal:
            self._write(f"{self.line(time.monotonic() - self._started, 0)}\n")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def text(summary: Summary) -> str:
    """Counts, reasons of failures, and percentiles in seconds."""
    lines = [
        f"{summary.completed} completed, {summary.failed} failed in {summary.seconds:.1f} s:"
        f" {summary.rate:.3g} videos per second"
    ]
    lines += [f"  {count} x {reason}" for reason, count in summary.failures.items()]
    rows = {"latency": summary.latency, "until accepted": summary.accept, **summary.stages}
    shown = {name: seen for name, seen in rows.items() if seen is not None}
    if shown:
        lines.append(f"{'seconds':<16}{'mean':>9}" + "".join(f"{name:>9}" for name in SHARES))
        lines += [f"{name:<16}{_cells(seen)}" for name, seen in shown.items()]
    return "\n".join(lines)


def _cells(seen: Distribution) -> str:
    return "".join(f"{value:9.3f}" for value in (seen.mean, *seen.percentiles.values()))
