"""The tasks of a role: inputs are read ahead, one task computes, outputs wait in their slots."""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from services.media.mp4 import MediaError
from services.model.base import Cancelled, InvalidRequest, Value
from services.session import Session
from services.stage import Product, Stage
from services.wire import engine_addresses, slot_location, slot_message
from transfer.endpoint import Held, Received, TransferEndpoint
from transfer.errors import TransferError
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import (
    Accepted,
    Done,
    Event,
    Failed,
    Input,
    InputReady,
    Progress,
    Run,
    Timing,
    Transfer,
)

log = logging.getLogger(__name__)

READ_ATTEMPTS = 2  # from the same holder, before the input counts as lost


class InputLost(Exception):
    """An input could not be read from the peer that holds it."""

    def __init__(self, task_id: str, cause: TransferError) -> None:
        super().__init__(str(cause))
        self.task_id = task_id


class TaskControl:
    """How the compute thread tells of its progress and hears of a cancel."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def progress(self, step: int, total: int) -> None:
        self._report(step, total)


@dataclass
class Task:
    """A task that was taken and is not finished."""

    run: Run
    session: Session | None  # whoever hears of it; None after its stream broke
    control: TaskControl
    coroutine: asyncio.Task[None] | None = None
    interruptible: bool = False  # the coroutine may be cancelled: it runs, and no thread works for it
    timing: Timing = field(default_factory=Timing)


@dataclass
class Output:
    """A finished output in its slot, until it is released."""

    done: Done
    held: Held
    session: Session | None


@dataclass(frozen=True)
class WorkerLimits:
    capacity: int  # tasks at once: one computes, the others read their inputs
    read_seconds: float  # for one read of an input
    pool_seconds: float  # waiting for room in a pool
    hold_seconds: float  # how long outputs outlive the stream of the orchestrator that knows of them


class Worker:
    """Runs tasks and owns their slots. Everything but the stage itself runs on the event loop."""

    def __init__(self, stage: Stage, endpoint: TransferEndpoint, limits: WorkerLimits) -> None:
        self.tasks: dict[str, Task] = {}
        self.outputs: dict[str, Output] = {}
        self.draining = False
        self.idle = asyncio.Event()  # nothing runs and nothing is held
        self.idle.set()
        self.limits = limits
        self._stage = stage
        self._endpoint = endpoint
        self._turn = asyncio.Lock()  # fair: tasks compute in the order in which their inputs are there
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._loop = asyncio.get_running_loop()

    # ---- sessions

    def attach(self, session: Session) -> tuple[list[str], list[Done]]:
        """Gives what no session hears of to ``session``; returns running task ids and held outputs."""
        tasks = [task for task in self.tasks.values() if task.session is None]
        outputs = [output for output in self.outputs.values() if output.session is None]
        for task in tasks:
            task.session = session
        for output in outputs:
            output.session = session
        return [task.run.task_id for task in tasks], [output.done for output in outputs]

    def detach(self, session: Session) -> None:
        """The stream broke: the work goes on, and its outputs are held for a time."""
        for task in self.tasks.values():
            if task.session is session:
                task.session = None
        for output in self.outputs.values():
            if output.session is session:
                output.session = None
        self._loop.call_later(self.limits.hold_seconds, self._release_orphans)

    def _release_orphans(self) -> None:
        self.release([task_id for task_id, output in self.outputs.items() if output.session is None])

    # ---- commands

    def run(self, run: Run, session: Session) -> None:
        """Takes a task. What cannot be taken is answered with ``Failed``."""
        refusal = ""
        if self.draining:
            refusal = "this instance is draining"
        elif run.task_id in self.tasks or run.task_id in self.outputs:
            refusal = "a task of this id is here already"
        elif len(self.tasks) >= self.limits.capacity:
            refusal = f"all {self.limits.capacity} places are taken"
        if refusal:
            session.send(Event(failed=Failed(task_id=run.task_id, message=refusal)))
            return
        if self.tasks:
            session.send(Event(accepted=Accepted(task_id=run.task_id)))
        task = Task(
            run, session, TaskControl(lambda step, total: self._report_progress(run.task_id, step, total))
        )
        self.tasks[run.task_id] = task
        self.idle.clear()
        task.coroutine = asyncio.create_task(self._execute(task), name=run.task_id)

    def cancel(self, task_id: str) -> None:
        """Stops a task at its next step; one that is not here has ended already."""
        task = self.tasks.get(task_id)
        if task is None:
            self.release([task_id])
            return
        task.control.cancel()
        # The compute thread cannot be interrupted: it sees the flag at its next step. Its inputs must stay.
        if task.interruptible and task.coroutine is not None:
            task.coroutine.cancel()

    def release(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            output = self.outputs.pop(task_id, None)
            if output is not None:
                output.held.release()
        self._note_idle()

    async def close(self) -> None:
        """Cancels what runs, frees what is held."""
        self.draining = True
        for task_id in list(self.tasks):
            self.cancel(task_id)
        await asyncio.gather(
            *(t.coroutine for t in self.tasks.values() if t.coroutine), return_exceptions=True
        )
        self.release(list(self.outputs))
        self._compute.shutdown(wait=True)

    # ---- a task

    async def _execute(self, task: Task) -> None:
        run = task.run
        task.interruptible = True
        try:
            task.control.raise_if_cancelled()
            product = await self._compute_product(task)
            event = Event(done=await self._publish(task, product))
        except (Cancelled, asyncio.CancelledError):
            event = _failed(run, Failed.CANCELLED, "cancelled")
        except InputLost as error:
            event = _failed(run, Failed.INPUT_LOST, str(error), [error.task_id])
        except InvalidRequest as error:
            event = _failed(run, Failed.INVALID, str(error))
        except MediaError as error:
            event = _failed(run, Failed.OUTPUT_STORE, str(error))
        except Exception as error:
            log.exception("task %s failed", run.task_id)
            event = _failed(run, Failed.INTERNAL, f"{type(error).__name__}: {error}")
        del self.tasks[run.task_id]
        if event.HasField("failed"):
            log.info(
                "task %s: %s: %s", run.task_id, Failed.Reason.Name(event.failed.reason), event.failed.message
            )
        if task.session is not None:
            task.session.send(event)
        self._note_idle()

    async def _compute_product(self, task: Task) -> Product:
        received: list[Received] = []
        try:
            inputs = await self._read_inputs(task, received)
            waiting_since = time.monotonic()
            async with self._turn:
                task.timing.waiting += time.monotonic() - waiting_since
                task.interruptible = False
                product = await self._loop.run_in_executor(
                    self._compute, self._run_stage, task.run, inputs, task.control
                )
                task.interruptible = True
                return product
        finally:
            for item in received:
                item.release()

    def _run_stage(self, run: Run, inputs: Mapping[str, Value], control: TaskControl) -> Product:
        """Runs on the compute thread."""
        control.raise_if_cancelled()
        product = self._stage.run(run.task_id, run.generation, inputs, control)
        try:
            control.raise_if_cancelled()
        except Cancelled:
            self._stage.discard(product)
            raise
        return product

    async def _read_inputs(self, task: Task, received: list[Received]) -> Mapping[str, Value]:
        if not task.run.inputs:
            return {}
        started = time.monotonic()
        values: dict[str, Value] = {}
        transfers = []
        for source in task.run.inputs:
            item = await self._read(source)
            received.append(item)
            repeated = values.keys() & item.values.keys()
            if repeated:
                raise ValueError(f"inputs {sorted(repeated)} come from two stages")
            values |= item.values
            transfers.append(
                Transfer(
                    from_task_id=source.task_id, engine=item.engine, bytes=item.nbytes, seconds=item.seconds
                )
            )
        task.timing.transfer = time.monotonic() - started
        if task.session is not None:
            ready = InputReady(task_id=task.run.task_id, transfers=transfers)
            task.session.send(Event(input_ready=ready))
        return values

    async def _read(self, source: Input) -> Received:
        for attempt in range(READ_ATTEMPTS):
            try:
                return await self._endpoint.fetch(
                    EndpointURL.parse(source.url),
                    source.incarnation,
                    engine_addresses(source),
                    slot_location(source.slot),
                    timeout=self.limits.read_seconds,
                )
            except TransferError as error:
                log.warning("reading the output of %s from %s: %s", source.task_id, source.url, error)
                if attempt + 1 == READ_ATTEMPTS:
                    raise InputLost(source.task_id, error) from error
        raise AssertionError("unreachable")

    async def _publish(self, task: Task, product: Product) -> Done:
        task.timing.compute = product.compute_seconds
        task.timing.saving = product.saving_seconds
        done = Done(task_id=task.run.task_id, peak_memory_bytes=peak_memory_bytes())
        if product.values is not None:
            waiting_since = time.monotonic()
            held = await self._endpoint.put(product.values, timeout=self.limits.pool_seconds)
            task.timing.waiting += time.monotonic() - waiting_since
            done.slot.CopyFrom(slot_message(held.location))
            done.timing.CopyFrom(task.timing)
            self.outputs[task.run.task_id] = Output(done, held, task.session)
            if task.session is None:
                self._loop.call_later(self.limits.hold_seconds, self._release_orphans)
        elif product.file is not None:
            done.file.CopyFrom(product.file)
            done.timing.CopyFrom(task.timing)
        return done

    def _report_progress(self, task_id: str, step: int, total: int) -> None:
        """Called on the compute thread."""
        self._loop.call_soon_threadsafe(self._send_progress, task_id, step, total)

    def _send_progress(self, task_id: str, step: int, total: int) -> None:
        task = self.tasks.get(task_id)
        if task is not None and task.session is not None:
            task.session.send(Event(progress=Progress(task_id=task_id, step=step, total=total)))

    def _note_idle(self) -> None:
        if self.tasks or self.outputs:
            self.idle.clear()
        else:
            self.idle.set()


def _failed(run: Run, reason: Failed.Reason.ValueType, message: str, lost: list[str] | None = None) -> Event:
    return Event(failed=Failed(task_id=run.task_id, reason=reason, message=message, lost_inputs=lost or []))


def peak_memory_bytes() -> int:
    """The largest resident set this process has had (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
