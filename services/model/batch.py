"""Several runs in one loop: each is a lane that can leave, or fail to begin, without the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from services.model.base import Cancelled, Control, Lane, Outcome, Value

Opened = TypeVar("Opened")


class LaneControls:
    """The controls of a batch as one: a lane that is cancelled leaves, the last one stops the loop."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self.left: dict[int, Cancelled] = {}  # by place
        self._controls = controls

    def progress(self, step: int, total: int) -> None:
        for place, control in enumerate(self._controls):
            if place not in self.left:
                control.progress(step, total)

    def raise_if_cancelled(self) -> None:
        for place, control in enumerate(self._controls):
            if place not in self.left:
                try:
                    control.raise_if_cancelled()
                except Cancelled as error:
                    self.left[place] = error
        if len(self.left) == len(self._controls):
            raise Cancelled


def run_lanes(
    lanes: Sequence[Lane],
    open_lane: Callable[[Lane], Opened],
    loop: Callable[[list[Lane], list[Opened], Control], Sequence[dict[str, Value]]],
) -> list[Outcome]:
    """Takes those lanes through ``loop`` that can be opened; the others fail alone."""
    outcomes: dict[int, Outcome] = {}
    opened: dict[int, Opened] = {}
    for place, lane in enumerate(lanes):
        try:
            lane.control.raise_if_cancelled()
            opened[place] = open_lane(lane)
        except Exception as error:
            outcomes[place] = error
    if opened:
        begun = [lanes[place] for place in opened]
        controls = LaneControls([lane.control for lane in begun])
        made: Sequence[Outcome] = [Cancelled()] * len(begun)
        try:
            made = loop(begun, list(opened.values()), controls)
        except Cancelled:
            pass
        for index, place in enumerate(opened):
            outcomes[place] = controls.left.get(index, made[index])
    return [outcomes[place] for place in range(len(lanes))]
