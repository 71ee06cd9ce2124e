"""Which of several instances with room gets the next task: small classes, chosen by ``--policy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.life import Life
from transfer.urls import EndpointURL

Seconds = Callable[[Life], float]  # how long the task would compute on an instance, as far as is known


class Policy(Protocol):
    """One object for each kind of role and model."""

    def choose(self, free: Sequence[Life], seconds: Seconds) -> Life:
        """One of ``free``, which is not empty and in the order of the instances' URLs."""


class RoundRobin:
    """Each instance in turn, in the order of their URLs; those without room are passed over."""

    def __init__(self) -> None:
        self._last: EndpointURL | None = None

    def choose(self, free: Sequence[Life], seconds: Seconds) -> Life:
        last = self._last
        after = [life for life in free if last is not None and life.url > last]
        chosen = (after or free)[0]
        self._last = chosen.url
        return chosen


class LeastLoaded:
    """The one with the fewest tasks; among equals the one that has been given the fewest so far."""

    def choose(self, free: Sequence[Life], seconds: Seconds) -> Life:
        return min(free, key=lambda life: (len(life.tasks), life.dispatched))


class LeastWork:
    """The one that would finish the task first, by the work it has and how fast it has been so far."""

    def choose(self, free: Sequence[Life], seconds: Seconds) -> Life:
        return min(
            free, key=lambda life: (life.seconds_left() + seconds(life), len(life.tasks), life.dispatched)
        )


POLICIES: dict[str, Callable[[], Policy]] = {
    "least_work": LeastWork,
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
}
