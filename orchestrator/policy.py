"""Which of several free instances gets the next task."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.peers import Life


def least_loaded(free: Sequence[Life]) -> Life:
    """The one with the fewest tasks; among equals the one that has been given the fewest so far."""
    return min(free, key=lambda life: (len(life.tasks), life.dispatched))
