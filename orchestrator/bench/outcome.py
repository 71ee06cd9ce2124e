"""What became of one request of a load, and what all of them say together."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Outcome:
    """Times in seconds since the load began. ``due`` is when the request was to be sent: in an open loop a
    client that is late makes its requests slower, not fewer.
    """

    number: int
    due: float
    sent: float
    accepted: float | None  # the reply to POST was there; None: it was refused
    ended: float
    video_id: str | None = None
    failure: str | None = None  # None: the video is there
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds, as the server tells them

    @property
    def latency(self) -> float:
        return self.ended - self.due


def stages_of(video: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage where the server tells them (``stage_durations``), else ``inference`` if it does."""
    found: dict[str, float] = {}
    durations = video.get("stage_durations")
    if isinstance(durations, Mapping):
        found = {str(name): float(value) for name, value in durations.items() if _is_number(value)}
    if not found and _is_number(video.get("inference_time_s")):
        found["inference"] = float(video["inference_time_s"])
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Distribution:
    """Of some seconds; percentiles are values that were seen (nearest rank)."""

    mean: float
    percentiles: Mapping[str, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """None of none."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(
            sum(ordered) / len(ordered),
            {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in SHARES.items()},
        )


@dataclass(frozen=True)
class Summary:
    """Latencies are of the requests that got their video."""

    completed: int
    failed: int
    failures: Mapping[str, int]  # how many, by reason
    seconds: float  # from the first request to the last end
    rate: float  # videos per second
    latency: Distribution | None
    accept: Distribution | None  # until POST was answered
    stages: Mapping[str, Distribution]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Summary:
        done = [one for one in outcomes if one.failure is None]
        seconds = max(one.ended for one in outcomes) - min(one.due for one in outcomes) if outcomes else 0.0
        stages: dict[str, list[float]] = defaultdict(list)
        for one in done:
            for name, value in one.stages.items():
                stages[name].append(value)
        return cls(
            completed=len(done),
            failed=len(outcomes) - len(done),
            failures=dict(Counter(one.failure for one in outcomes if one.failure is not None).most_common()),
            seconds=seconds,
            rate=len(done) / seconds if seconds > 0 else 0.0,
            latency=Distribution.of([one.latency for one in done]),
            accept=Distribution.of([one.accepted - one.sent for one in done if one.accepted is not None]),
            stages={name: seen for name, values in stages.items() if (seen := Distribution.of(values))},
        )

    def record(self) -> dict[str, Any]:
        return asdict(self)
