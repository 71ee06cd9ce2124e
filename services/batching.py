"""Whose turn it is to compute: the task that has waited longest, with those that can share its loop."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from services.model.base import Cancelled, Control, Value
from services.stage import BatchStage, Product, Stage, Work
from services.task import Task

log = logging.getLogger(__name__)

MAX_KEYS = 1024  # whose batches were too large, of which that is remembered

Outcome: TypeAlias = "Product | BaseException"


@dataclass(eq=False, repr=False)
class _Place:
    """A task in the queue, then at work."""

    task: Task
    inputs: Mapping[str, Value]
    key: Hashable  # None: it runs alone
    outcome: asyncio.Future[Product]
    since: float


class Turns:
    """One loop at a time, in a thread of its own. Nobody waits for a batch to fill.

    A task that is cancelled while its loop runs ends at once, its lane is computed in vain. When a loop
    fails, each task that was in it runs alone: then the fault is that task's own.
    """

    def __init__(self, stage: Stage, max_batch: int) -> None:
        self._stage = stage
        self._batches = stage if isinstance(stage, BatchStage) and max_batch > 1 else None
        self._max_batch = max_batch
        self._largest: OrderedDict[Hashable, int] = OrderedDict()  # batch, by key, where it is less than that
        self._waiting: deque[_Place] = deque()
        self._computing = False
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._loop = asyncio.get_running_loop()

    async def run(self, task: Task, inputs: Mapping[str, Value]) -> Product:
        """Computes ``task`` when its turn comes; it cannot be interrupted then. Raises as the stage."""
        key = self._batches.batch_key(task.run, inputs) if self._batches else None
        place = _Place(task, inputs, key, self._loop.create_future(), time.monotonic())
        self._waiting.append(place)
        self._next()
        try:
            return await place.outcome
        finally:
            task.interruptible = True
            if place in self._waiting:  # cancelled while it waited
                self._waiting.remove(place)
            del place  # its outcome may be an error, whose traceback has this frame

    def shutdown(self) -> None:
        """Waits for the thread."""
        self._compute.shutdown()

    # ---- on the event loop

    def _next(self) -> None:
        """Begins with whatever is there, if nothing computes."""
        places = [] if self._computing else self._take()
        if not places:
            return
        self._computing = True
        now = time.monotonic()
        for place in places:
            place.task.timing.waiting += now - place.since
            place.task.interruptible = False
            place.task.computing = True
        self._loop.run_in_executor(self._compute, self._work, places).add_done_callback(
            lambda done: self._ended(places, done)
        )

    def _take(self) -> list[_Place]:
        # One that was cancelled a moment ago may not have left the queue yet.
        waiting = [place for place in self._waiting if not place.outcome.done()]
        if not waiting:
            return []
        key = waiting[0].key
        taken = waiting[:1]
        if key is not None:
            alike = [place for place in waiting if place.key == key]
            taken = alike[: self._largest.get(key, self._max_batch)]
        for place in taken:
            self._waiting.remove(place)
        return taken

    def _ended(self, places: Sequence[_Place], done: asyncio.Future[None]) -> None:
        self._computing = False
        self._next()
        for place in places:
            if not place.outcome.done():  # a fault of ours: no task may wait for ever
                self._settle(place, done.exception() or RuntimeError("the task was not computed"))

    def _settle(self, place: _Place, outcome: Outcome) -> None:
        if place.outcome.done():  # it has left
            if isinstance(outcome, Product):
                self._stage.discard(outcome)
        elif isinstance(outcome, Product):
            place.outcome.set_result(outcome)
        else:
            place.outcome.set_exception(outcome)

    def _shrink(self, key: Hashable, size: int) -> None:
        """A loop of ``size`` failed that none of its tasks is to blame for: it was too large."""
        self._largest[key] = max(size - 1, 1)
        self._largest.move_to_end(key)
        if len(self._largest) > MAX_KEYS:
            self._largest.popitem(last=False)

    # ---- on the compute thread

    def _work(self, places: Sequence[_Place]) -> None:
        if len(places) > 1:
            try:
                self._together(places)
                return
            except Exception as error:
                log.warning("a loop of %d tasks failed, each runs alone now: %r", len(places), error)
                _let_go(error)  # they will need the room
        blameless = [self._alone(place) for place in places]
        if len(places) > 1 and all(blameless):
            self._loop.call_soon_threadsafe(self._shrink, places[0].key, len(places))

    def _together(self, places: Sequence[_Place]) -> None:
        assert self._batches is not None
        works = [Work(place.task.run, place.inputs, _LaneControl(self, place)) for place in places]
        for place, outcome in zip(places, self._batches.run_batch(works), strict=True):
            self._tell(place, outcome)

    def _alone(self, place: _Place) -> bool:
        """Whether it came to a good end, or to one that says nothing of it."""
        control = place.task.control
        outcome: Outcome
        try:
            control.raise_if_cancelled()
            outcome = self._stage.run(place.task.run, place.inputs, control)
        except BaseException as error:
            outcome = error
        try:
            self._tell(place, outcome)
            return isinstance(outcome, (Product, Cancelled))
        finally:
            del outcome  # the traceback of an error has this frame

    def _tell(self, place: _Place, outcome: Outcome) -> None:
        if isinstance(outcome, Product) and place.task.control.cancelled:
            self._stage.discard(outcome)
            outcome = Cancelled()
        if isinstance(outcome, BaseException):
            _let_go(outcome)
        self._loop.call_soon_threadsafe(self._settle, place, outcome)

    def left(self, place: _Place) -> None:
        """The stage has heard that ``place`` is cancelled, and reads its inputs no more."""
        self._tell(place, Cancelled())


def _let_go(error: BaseException) -> None:
    """Of the tensors of a run that is over: the frames in its error's traceback hold them.

    Whoever keeps the error, for the log or in a cycle, would keep them, on a device of whose memory Python's
    collector knows nothing.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]


class _LaneControl(Control):
    """Of a task in a batch: a cancel ends the task at once, though the loop goes on."""

    def __init__(self, turns: Turns, place: _Place) -> None:
        self._turns = turns
        self._place = place

    def progress(self, step: int, total: int) -> None:
        self._place.task.control.progress(step, total)

    def raise_if_cancelled(self) -> None:
        try:
            self._place.task.control.raise_if_cancelled()
        except Cancelled:
            self._turns.left(self._place)
            raise
