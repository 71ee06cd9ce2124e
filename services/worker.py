"""The tasks of a role: inputs are read ahead, tasks compute in turn, outputs wait in their slots."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from services import validation
from services.batching import Turns
from services.media.files import MediaError
from services.model.base import Cancelled, DeviceLost, InvalidRequest, OutOfMemory, Value
from services.session import Session
from services.stage import Product, Stage
from services.task import InputLost, NoRoom, Output, Task, TaskControl, WorkerLimits
from services.wire import engine_addresses, slot_location, slot_message
from transfer.endpoint import Received, TransferEndpoint
from transfer.errors import PoolFull, TransferError
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import (
    Accepted,
    Done,
    Event,
    Failed,
    Input,
    InputReady,
    Orphans,
    Places,
    Progress,
    Run,
    Transfer,
)

log = logging.getLogger(__name__)

MAX_ORPHANS = 10_000  # told at once; further ones are told when these are gone
MAX_ID_CHARS = 200
RECOVER_SECONDS = 10.0  # for files of dead processes to be delivered, before this one opens for work
REDELIVER_SECONDS = 30.0  # between two tries to deliver one
READ_ATTEMPTS = 2  # from the same holder, before the input counts as lost


class Worker:
    """Runs tasks and owns their slots. Everything but the stage itself runs on the event loop."""

    def __init__(self, stage: Stage, endpoint: TransferEndpoint, limits: WorkerLimits) -> None:
        self.tasks: dict[str, Task] = {}
        self.outputs: dict[str, Output] = {}
        self.draining = False
        self.lost = asyncio.Event()  # this process cannot compute any more, and should end
        self.idle = asyncio.Event()  # nothing runs and nothing is held
        self.idle.set()
        self.limits = limits
        self._stage = stage
        self._endpoint = endpoint
        self._turns = Turns(stage, limits.max_batch)  # in the order in which their inputs are there
        self._files = ThreadPoolExecutor(4, thread_name_prefix="files")  # a store that is away keeps one busy
        self._deliveries = ThreadPoolExecutor(limits.capacity, thread_name_prefix="deliver")
        self._late: asyncio.Task[None] | None = None  # delivers files of dead processes
        self._late_control = TaskControl(lambda step, total: None)
        self._sessions: list[Session] = []
        self._loop = asyncio.get_running_loop()

    # ---- sessions

    def attach(self, session: Session) -> list[str]:
        """``session`` hears of its own tasks from now on; returns the orphans it may adopt."""
        self._sessions.append(session)
        self._note_places()
        return self._orphans()

    def detach(self, session: Session) -> None:
        """The stream broke: the work goes on, and its outputs are held for a time."""
        self._sessions.remove(session)
        orphans: list[str] = []  # new ones: of the others everybody has heard
        everything: tuple[tuple[str, Task | Output], ...] = (*self.tasks.items(), *self.outputs.items())
        for task_id, item in everything:
            if item.session is session:
                item.session = None
                orphans.append(task_id)
        for other in self._sessions:
            if orphans:
                other.send(Event(orphans=Orphans(task_ids=orphans[:MAX_ORPHANS])))
        self._note_places()
        self._note_idle()
        self._loop.call_later(self.limits.hold_seconds, self._release_orphans)

    async def recover(self) -> None:
        """Takes up the files of dead processes that nobody has accepted. To be called before any work."""
        products = await asyncio.to_thread(self._stage.recover)
        late = [product for product in products if not product.delivered]
        for product in products:
            if product.delivered:
                self._offer(product)
        if late:
            self._late = asyncio.create_task(self._deliver_late(late))
            await asyncio.wait([self._late], timeout=RECOVER_SECONDS)

    async def _deliver_late(self, products: Sequence[Product]) -> None:
        """One after the other, and each until it is done: they are safe where they are."""
        waiting = deque(products)
        try:
            while waiting:
                try:
                    await asyncio.to_thread(self._stage.deliver, waiting[0], self._late_control)
                    self._offer(waiting.popleft())
                except MediaError as error:
                    log.warning("%s: not delivered yet: %s", waiting[0].task_id, error)
                    waiting.rotate(-1)
                    await asyncio.sleep(REDELIVER_SECONDS)
        finally:
            for product in waiting:
                if product.claim is not None:
                    product.claim.leave()

    def _offer(self, product: Product) -> None:
        """Whoever owns its job may adopt it."""
        done = Done(task_id=product.task_id, file=product.file)
        self.outputs[product.task_id] = Output(done, product, None, None)
        for session in self._sessions:
            session.send(Event(orphans=Orphans(task_ids=[product.task_id])))

    def _orphans(self) -> list[str]:
        tasks = [task_id for task_id, task in self.tasks.items() if task.session is None]
        outputs = [task_id for task_id, output in self.outputs.items() if output.session is None]
        return (tasks + outputs)[:MAX_ORPHANS]

    def _release_orphans(self) -> None:
        """Tensors take up slots and are made again when needed; files wait for whoever comes."""
        self.release([t for t, output in self.outputs.items() if output.session is None and output.held])

    # ---- commands

    def run(self, run: Run, session: Session) -> None:
        """Takes a task. What cannot be taken is answered with ``Failed``."""
        if problem := validation.problem(run, self.limits.max_images):
            session.send(_failed(run.task_id[:MAX_ID_CHARS], Failed.INVALID, problem))
            return
        refusal = ""
        if self.draining:
            refusal = "this instance is draining"
        elif run.task_id in self.tasks or run.task_id in self.outputs:
            refusal = "a task of this id is here already"
        elif len(self.tasks) >= self.limits.capacity:
            refusal = f"all {self.limits.capacity} places are taken"
        if refusal:
            session.send(_failed(run.task_id, Failed.REFUSED, refusal))
            return
        if self.tasks:
            session.send(Event(accepted=Accepted(task_id=run.task_id)))
        task = Task(
            run, session, TaskControl(lambda step, total: self._report_progress(run.task_id, step, total))
        )
        self.tasks[run.task_id] = task
        self.idle.clear()
        self._note_places()
        task.coroutine = asyncio.create_task(self._execute(task), name=run.task_id)

    def adopt(self, task_ids: Sequence[str], session: Session) -> None:
        """``session`` hears of these orphans from now on, and at once of what it has missed."""
        for task_id in task_ids:
            if session.closed:
                return
            task, output = self.tasks.get(task_id), self.outputs.get(task_id)
            if task is not None and task.session is None:
                task.session = session
                if task.input_ready is not None:
                    session.send(Event(input_ready=task.input_ready))
            elif output is not None and output.session is None:
                output.session = session
                session.send(Event(done=output.done))
            else:
                session.send(_failed(task_id, Failed.GONE, "there is no such orphan here"))
        self._note_places()

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

    def drain(self) -> None:
        """Takes no new task, and hands back those that wait here and can go elsewhere at no cost."""
        self.draining = True
        for task_id, task in list(self.tasks.items()):
            # Once its inputs are here, they are nowhere else: elsewhere they had to be made again.
            if not task.computing and task.input_ready is None and not task.control.cancelled:
                task.handed_back = True
                self.cancel(task_id)

    def release(self, task_ids: Sequence[str]) -> None:
        """These outputs are no longer needed: their slots are free, their files go."""
        for task_id in task_ids:
            output = self.outputs.pop(task_id, None)
            if output is not None and output.held is not None:
                output.held.release()
            elif output is not None:
                self._files.submit(self._stage.discard, output.product)
        self._note_idle()

    def accept(self, task_ids: Sequence[str]) -> None:
        """These results are recorded: they are no longer ours to keep in mind, and their files stay."""
        for task_id in task_ids:
            output = self.outputs.pop(task_id, None)
            if output is not None and output.held is not None:
                output.held.release()
            elif output is not None:
                self._files.submit(self._stage.accept, output.product)
        self._note_idle()

    async def close(self) -> None:
        """Cancels what runs, frees what is held; files that nobody has accepted wait for another process."""
        self.draining = True
        self._late_control.cancel()  # its thread cannot be cancelled
        for task_id in list(self.tasks):
            self.cancel(task_id)
        if self._late is not None:
            self._late.cancel()
            await asyncio.wait([self._late])
        await asyncio.gather(
            *(t.coroutine for t in self.tasks.values() if t.coroutine), return_exceptions=True
        )
        self.release([task_id for task_id, output in self.outputs.items() if output.held is not None])
        for output in self.outputs.values():
            if output.product.claim is not None:
                output.product.claim.leave()
        await asyncio.to_thread(self._turns.shutdown)
        await asyncio.to_thread(self._deliveries.shutdown)
        await asyncio.to_thread(self._files.shutdown)

    # ---- a task

    async def _execute(self, task: Task) -> None:
        run = task.run
        task.interruptible = True
        try:
            task.control.raise_if_cancelled()
            product = await self._compute_product(task)
            if not product.delivered:
                await self._deliver(task, product)
            event = Event(done=await self._publish(task, product))
        except (Cancelled, asyncio.CancelledError):
            reason, message = Failed.CANCELLED, "cancelled"
            if task.handed_back:
                reason, message = Failed.REFUSED, "this instance is draining"
            event = _failed(run.task_id, reason, message)
        except NoRoom as error:
            event = _failed(run.task_id, Failed.REFUSED, str(error))
        except InputLost as error:
            event = _failed(run.task_id, Failed.INPUT_LOST, str(error), [error.task_id])
        except InvalidRequest as error:
            event = _failed(run.task_id, Failed.INVALID, str(error))
        except MediaError as error:
            event = _failed(run.task_id, Failed.OUTPUT_STORE, str(error))
        except OutOfMemory as error:
            event = _failed(run.task_id, Failed.INTERNAL, str(error))
        except DeviceLost as error:
            log.critical("task %s: %s; this process ends", run.task_id, error)
            self.lost.set()
            return  # nothing is said of the task: it ends as those do whose process dies
        except Exception as error:
            log.exception("task %s failed", run.task_id)
            event = _failed(run.task_id, Failed.INTERNAL, f"{type(error).__name__}: {error}")
        del self.tasks[run.task_id]
        if event.HasField("failed"):
            log.info(
                "task %s: %s: %s", run.task_id, Failed.Reason.Name(event.failed.reason), event.failed.message
            )
        if task.session is not None:
            task.session.send(event)
        self._note_places()
        self._note_idle()

    async def _compute_product(self, task: Task) -> Product:
        received: list[Received] = []
        try:
            inputs = await self._read_inputs(task, received)
            return await self._turns.run(task, inputs)
        finally:
            for item in received:
                item.release()

    async def _deliver(self, task: Task, product: Product) -> None:
        """The next task computes meanwhile; this one keeps its place, so that no more pile up."""
        started = time.monotonic()
        task.interruptible = False
        try:
            await self._loop.run_in_executor(self._deliveries, self._stage.deliver, product, task.control)
            task.control.raise_if_cancelled()
        except BaseException:
            self._files.submit(self._stage.discard, product)
            raise
        finally:
            task.interruptible = True
        product.saving_seconds += time.monotonic() - started

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
        task.input_ready = InputReady(task_id=task.run.task_id, transfers=transfers)
        if task.session is not None:
            task.session.send(Event(input_ready=task.input_ready))
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
            except PoolFull as error:
                raise NoRoom(str(error)) from error
            except TransferError as error:
                log.warning("reading the output of %s from %s: %s", source.task_id, source.url, error)
                if attempt + 1 == READ_ATTEMPTS:
                    raise InputLost(source.task_id, error) from error
        raise AssertionError("unreachable")

    async def _publish(self, task: Task, product: Product) -> Done:
        task.timing.compute, task.timing.batch = product.compute_seconds, product.batch
        task.timing.saving = product.saving_seconds
        done = Done(task_id=task.run.task_id, peak_memory_bytes=peak_memory_bytes())
        held = None
        if product.values is not None:
            waiting_since = time.monotonic()
            try:
                held = await self._endpoint.put(product.values, timeout=self.limits.pool_seconds)
            except PoolFull as error:
                raise NoRoom(str(error)) from error
            task.timing.waiting += time.monotonic() - waiting_since
            done.slot.CopyFrom(slot_message(held.location))
            if task.session is None:
                self._loop.call_later(self.limits.hold_seconds, self._release_orphans)
        elif product.file is not None:
            done.file.CopyFrom(product.file)
        done.timing.CopyFrom(task.timing)
        self.outputs[task.run.task_id] = Output(done, product, held, task.session)
        return done

    def _report_progress(self, task_id: str, step: int, total: int) -> None:
        """Called on the compute thread."""
        self._loop.call_soon_threadsafe(self._send_progress, task_id, step, total)

    def _send_progress(self, task_id: str, step: int, total: int) -> None:
        task = self.tasks.get(task_id)
        if task is not None and task.session is not None:
            task.session.send(Event(progress=Progress(task_id=task_id, step=step, total=total)))

    def _note_places(self) -> None:
        """Tells each session how many places are not its own to fill."""
        for session in self._sessions:
            others = sum(task.session is not session for task in self.tasks.values())
            if others != session.taken_by_others:
                session.taken_by_others = others
                session.send(Event(places=Places(taken_by_others=others)))

    def _note_idle(self) -> None:
        # A file that no stream asks for is safe where it is: nothing needs to wait for it.
        waiting = any(o.held is not None or o.session is not None for o in self.outputs.values())
        if self.tasks or waiting:
            self.idle.clear()
        else:
            self.idle.set()


def _failed(task_id: str, reason: Failed.Reason.ValueType, message: str, lost: Sequence[str] = ()) -> Event:
    return Event(failed=Failed(task_id=task_id, reason=reason, message=message, lost_inputs=lost))


def peak_memory_bytes() -> int:
    """The largest resident set this process has had (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
