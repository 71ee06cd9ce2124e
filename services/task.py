"""A task of a role, from its acceptance to its end, and what is left of it: an output."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.model.base import Cancelled
from services.session import Session
from services.stage import Product
from transfer.endpoint import Held
from transfer.errors import TransferError
from triptych_proto.control_pb2 import Done, InputReady, Run, Timing


class InputLost(Exception):
    """An input could not be read from the peer that holds it."""

    def __init__(self, task_id: str, cause: TransferError) -> None:
        super().__init__(str(cause))
        self.task_id = task_id


class NoRoom(Exception):
    """A pool stayed full for too long; nobody's fault, and to be tried again."""


# Between two reports of a task: each wakes the event loop, which takes the interpreter from whoever computes.
REPORT_SECONDS = 0.1


class TaskControl:
    """How the compute thread tells of its progress and hears of a cancel."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._reported = time.monotonic()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def progress(self, step: int, total: int) -> None:
        """Of steps that are fast not all are told, and of a task that is over soon none."""
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report(step, total)


@dataclass
class Task:
    """A task that was taken and is not finished."""

    run: Run = field(repr=False)  # it holds reference images: as text they are tens of megabytes
    session: Session | None  # whoever hears of it; None after its stream broke
    control: TaskControl
    coroutine: asyncio.Task[None] | None = None
    interruptible: bool = False  # the coroutine may be cancelled: it runs, and no thread works for it
    computing: bool = False  # its turn has come
    input_ready: InputReady | None = None  # once its inputs are here
    handed_back: bool = False  # cancelled because this role drains
    timing: Timing = field(default_factory=Timing)


@dataclass
class Output:
    """A finished output: in its slot until it is released, or a file until it is accepted or released."""

    done: Done
    product: Product
    held: Held | None  # the slot; None for a file
    session: Session | None  # whoever heard of it; None after its stream broke


@dataclass(frozen=True)
class WorkerLimits:
    capacity: int  # tasks at once: some compute, the others read their inputs
    read_seconds: float  # for one read of an input
    pool_seconds: float  # waiting for room in a pool
    hold_seconds: float  # how long outputs outlive the stream of the orchestrator that knows of them
    max_images: int = 0  # reference images of a task: only an encoder's model takes any
    max_batch: int = 1  # tasks that may share a loop
