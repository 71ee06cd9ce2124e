"""Moves all jobs through their stages: takes in what role instances report, and says what follows."""

from __future__ import annotations

import asyncio
import enum
import heapq
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.absences import Absences
from orchestrator.active import Active, Output, Run
from orchestrator.cost import CostModel, Sizes
from orchestrator.dispatcher import Dispatcher
from orchestrator.execution import Effects, Execution, State
from orchestrator.graph import GENERATION, Graph
from orchestrator.jobs import Job, JobError, Status
from orchestrator.life import Life
from orchestrator.metrics import Metrics
from orchestrator.policy import POLICIES
from orchestrator.reference_memory import Share
from triptych_proto import control_pb2 as pb

log = logging.getLogger(__name__)

REFUSAL_SECONDS = 0.2  # an instance that has just refused a task is left alone


@dataclass(frozen=True)
class SchedulerOptions:
    max_tries: int = 4  # of one stage, that failed or lost their instance
    job_seconds: float = 3600.0  # from acceptance to the end
    absence_seconds: float = 300.0  # without any instance of a role that is needed
    policy: str = "least_work"
    priority_seconds: float = 60.0  # of waiting that one level of priority is worth


class Fate(enum.Enum):
    """What becomes of an orphan whose job this scheduler does not run."""

    ACCEPT = "accept"  # it is the result of a completed job
    DROP = "drop"  # nobody needs it
    LEAVE = "leave"  # another orchestrator's


class Scheduler:
    """All active jobs. Every method runs on the event loop and returns at once."""

    def __init__(
        self,
        epoch: str,
        lives: Callable[[], list[Life]],
        finished: Callable[[Job], None],
        fate: Callable[[str, str], Fate],
        metrics: Metrics,
        options: SchedulerOptions,
        graph: Graph = GENERATION,
        changed: Callable[[Job], None] = lambda job: None,
    ) -> None:
        """``finished`` hears of every job that completed or failed, with its outcome filled in; ``fate``
        knows, by job and task id, of work that an earlier orchestrator has left at a role; ``changed`` hears
        of every step of a job until then.
        """
        self.active: dict[str, Active] = {}
        self._stopped = False
        self.costs = CostModel()
        self._sizes = Sizes()
        self.dispatcher = Dispatcher(
            lives, POLICIES[options.policy], self.costs, self._sizes, options.priority_seconds
        )
        self._epoch = epoch
        self._lives = lives
        self._finished = finished
        self._fate = fate
        self._changed = changed
        self._metrics = metrics
        self._options = options
        self._graph = graph
        self._deadlines: list[tuple[float, str]] = []  # a heap; jobs that are over stay until their time
        self._absences = Absences(graph.roles, options.absence_seconds)
        self._holds = 0

    # ---- jobs

    def add(self, job: Job, images: Sequence[bytes] = (), share: Share | None = None) -> None:
        """``images`` are its reference images, ``share`` what they take up of the memory for them: given back
        when the job is over or taken out.
        """
        active = Active(job, Execution(job.id, self._graph, self._epoch), images=tuple(images), share=share)
        self.active[job.id] = active
        if job.deadline is None:
            job.deadline = job.created_at + self._options.job_seconds
        heapq.heappush(self._deadlines, (job.deadline, job.id))
        self._apply(active, active.execution.start())
        self._offer(job.id)
        self.dispatch()

    def remove(self, job_id: str) -> bool:
        """Takes a job out, wherever it is; its compute stops at the next step, its slots come back."""
        active = self.active.pop(job_id, None)
        if active is None:
            return False
        self._withdraw(active)
        self._offer(job_id)
        self.dispatch()
        return True

    def hold(self) -> None:
        """Dispatches nothing until ``resume``: what still runs somewhere is to be adopted, not repeated."""
        self._holds += 1

    def resume(self) -> None:
        """To be called once for each ``hold``."""
        self._holds -= 1
        self.dispatch()

    def accepted(self, job: Job) -> None:
        """The result of a completed job is recorded: the instance that holds it need not any more."""
        self._tell_holder(job, pb.Command(accept=pb.Accept(task_ids=[result_task(job)])))
        self._offer(job.id)

    def dropped(self, job: Job) -> None:
        """Nobody needs the result of this job."""
        self._tell_holder(job, pb.Command(release=pb.Release(task_ids=[result_task(job)])))
        self._offer(job.id)

    def _tell_holder(self, job: Job, command: pb.Command) -> None:
        for life in self._lives():
            if life.url_text == job.file_url:
                life.send(command)

    def expire(self) -> None:
        """Ends jobs that have waited too long. To be called about once a second."""
        wall = time.time()
        while self._deadlines and self._deadlines[0][0] <= wall:
            deadline, job_id = heapq.heappop(self._deadlines)
            active = self.active.get(job_id)
            if active is not None:
                allowed = round(deadline - active.job.created_at, 3)
                self._fail(active, "timeout", f"not finished within {allowed:g} s")
        self._note_absences()
        for role, model in self._absences.long():
            for job_id in self.dispatcher.queued(role, model):
                message = f"there was no {role} for {self._options.absence_seconds:.0f} s"
                self._fail(self.active[job_id], "no_instance", message)
        self.dispatch()

    def hopeless(self, model: str) -> str:
        """The role that was absent for so long that new jobs need not wait for it, or nothing."""
        return next((role for role, of in self._absences.long() if of == model), "")

    def _note_absences(self) -> None:
        self._absences.note(
            ((life.role, life.model_name) for life in self._lives()),
            (model for (_, model), depth in self.dispatcher.depths() if depth),
        )

    # ---- what the peers say

    def joined(self, life: Life, hello: pb.Hello) -> None:
        """What earlier streams have left there is adopted or stopped, then new work is given."""
        self._take_orphans(life, hello.orphans.task_ids)
        self._note_absences()
        self.dispatch()

    def left(self, life: Life) -> None:
        for job_id in list(life.jobs):
            active = self.active.get(job_id)
            if active is None:
                continue
            runs = active.execution.runs.values()
            lost = [run for run in runs if run.instance is life and run.state is State.RUNNING]
            effects = active.execution.instance_lost(life)
            for run in lost:
                active.end(run.task_id, "lost", f"{life} was lost")
                self._retrying(active, run, "instance lost", f"{life} was lost")
            self._apply(active, effects)
            self._offer(job_id)
        life.tasks.clear()
        self._note_absences()
        self.dispatch()

    def stop(self) -> None:
        """Lets go of all jobs. What roles still say is left unheard: an answer would release what is for the
        next orchestrator to adopt.
        """
        self._stopped = True
        self.active.clear()

    def received(self, life: Life, event: pb.Event) -> None:
        if self._stopped:
            return
        kind = event.WhichOneof("event")
        if kind == "stats":
            life.pools = tuple(event.stats.pools)
            life.traffic = tuple(event.stats.traffic)
            life.choices = tuple(event.stats.choices)
            if event.stats.HasField("embedding_cache"):
                life.embedding_cache = event.stats.embedding_cache
            life.resident_bytes = event.stats.resident_bytes
            if event.stats.draining and not life.draining:
                log.info("%s drains", life)
            life.draining = event.stats.draining
        elif kind == "input_ready":
            self._input_ready(life, event.input_ready)
        elif kind == "progress":
            self._progress(life, event.progress)
        elif kind == "done":
            self._done(life, event.done)
            self.dispatch()
        elif kind == "failed":
            self._failed(life, event.failed)
            self.dispatch()
        elif kind == "places":
            life.taken_by_others = event.places.taken_by_others
            self.dispatch()
        elif kind == "orphans":
            self._take_orphans(life, event.orphans.task_ids)

    def _take_orphans(self, life: Life, task_ids: Iterable[str]) -> None:
        adopted: list[str] = []
        for task_id in task_ids:
            active = self.active.get(task_id.split("/", 1)[0])
            holder = active.execution.holder(task_id) if active is not None else None
            if active is None:
                self._judge(life, task_id)
            elif holder is life:
                continue  # ours already: it was offered twice
            elif holder is not None:
                # Its file was found by another instance before we heard that the first one died.
                life.keep_orphan(active.job.id, task_id)
            elif self._adopt(active, life, task_id):
                adopted.append(task_id)
            else:
                life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))
        if adopted:
            life.send(pb.Command(adopt=pb.Adopt(task_ids=adopted)))

    def _offer(self, job_id: str) -> None:
        """Things have changed for the orphans of this job that were left where they are."""
        for life in self._lives():
            if life.orphans:
                self._take_orphans(life, list(life.orphans.pop(job_id, ())))

    def unclaimed(self) -> set[str]:
        """Jobs of orphans that were left to other orchestrators."""
        return {job_id for life in self._lives() for job_id in life.orphans}

    def drop_orphans(self, job_id: str) -> None:
        """There is no such job: what is left of it is stopped and freed."""
        for life in self._lives():
            for task_id in life.orphans.pop(job_id, ()):
                life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))

    def _judge(self, life: Life, task_id: str) -> None:
        """An orphan whose job is not run here."""
        job_id = task_id.split("/", 1)[0]
        fate = self._fate(job_id, task_id)
        if fate is Fate.ACCEPT:
            life.send(pb.Command(accept=pb.Accept(task_ids=[task_id])))
        elif fate is Fate.DROP:
            life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))
        else:
            life.keep_orphan(job_id, task_id)

    def _adopt(self, active: Active, life: Life, task_id: str) -> bool:
        effects = active.execution.adopt(life, task_id)
        if effects is None:
            return False
        run = active.execution.running(task_id)
        assert run is not None
        self._given(active, run, life)
        log.info("job=%s stage=%s state=running on=%s: adopted", active.job.id, run.stage.name, life.url)
        self._apply(active, effects)
        return True

    def runs(self, life: Life, task_id: str) -> bool:
        """Whether the task is of use, and this life is the one that has it."""
        return self._running(life, task_id) is not None

    def _running(self, life: Life, task_id: str) -> tuple[Active, Run] | None:
        """The run that ``life`` speaks of; None if this life does not run it (any more)."""
        active = self.active.get(task_id.split("/", 1)[0])
        run = active.execution.running(task_id) if active else None
        if active is None or run is None or run.instance is not life:
            return None
        return active, run

    def _input_ready(self, life: Life, ready: pb.InputReady) -> None:
        found = self._running(life, ready.task_id)
        if found is None:
            return
        active, run = found
        active.inputs_read(ready)
        for transfer in ready.transfers:
            edge = f"{'+'.join(run.stage.inputs)}-{run.stage.name}"
            self._metrics.transfer_bytes.labels(edge, transfer.engine).inc(transfer.bytes)
            self._metrics.transfer_seconds.labels(edge, transfer.engine).observe(transfer.seconds)
        self._apply(active, active.execution.inputs_read(ready.task_id))
        self.dispatch()  # its producer may have room again

    def _progress(self, life: Life, progress: pb.Progress) -> None:
        found = self._running(life, progress.task_id)
        if found is None or not progress.total:
            return
        active, run = found
        active.progress(run, progress.step, progress.total, self._graph, self.costs)
        self._changed(active.job)
        share = 1 - min(progress.step / progress.total, 1.0)
        job = active.job
        life.tasks[progress.task_id] = share * self.costs.estimate(
            run.stage, job.model, job.generation, life.url
        )

    def _done(self, life: Life, done: pb.Done) -> None:
        self._ended(life, done.task_id)
        found = self._running(life, done.task_id)
        if found is None:
            life.outbox.pop(done.task_id, None)
            life.send(pb.Command(release=pb.Release(task_ids=[done.task_id])))
            return
        active, run = found
        job, timing = active.job, done.timing
        active.end(done.task_id, "done", timing=timing)
        log.info(
            "job=%s stage=%s try=%d state=done on=%s seconds=%.3f",
            *(job.id, run.stage.name, run.attempts, life.url, timing.compute),
        )
        if done.HasField("slot"):
            life.outbox[done.task_id] = life.slot_bytes(done.slot.length)
            self._sizes.observe(run.stage, job, done.slot.length)
        else:
            life.outbox.pop(done.task_id, None)
        if timing.compute:
            self._metrics.stage_seconds.labels(run.stage.name).observe(timing.compute)
            batch = max(timing.batch, 1)
            self._metrics.batch_size.labels(run.stage.name).observe(batch)
            # What one task adds to an instance's work is its share.
            self.costs.observe(run.stage, job.model, job.generation, life.url, timing.compute / batch)
        job.peak_memory_bytes = max(job.peak_memory_bytes, done.peak_memory_bytes)
        active.show_progress(self._graph)
        self._changed(job)
        self._apply(active, active.execution.done(life, done.task_id, Output(life, done)))
        result = active.execution.result
        if result is not None:
            job.file = result.done.file
            job.file_url = str(result.life.url)
            self._finish(active, Status.COMPLETED)

    def _failed(self, life: Life, failed: pb.Failed) -> None:
        self._ended(life, failed.task_id)
        life.outbox.pop(failed.task_id, None)
        found = self._running(life, failed.task_id)
        if found is None:
            return
        active, run = found
        reason = pb.Failed.Reason.Name(failed.reason).lower()
        if failed.reason in (pb.Failed.REFUSED, pb.Failed.GONE, pb.Failed.CANCELLED):
            active.end(failed.task_id, "refused", failed.message)
            log.info("job=%s stage=%s: %s: %s", active.job.id, run.stage.name, life.url, failed.message)
            if failed.reason == pb.Failed.REFUSED:
                life.refusing_until = time.monotonic() + REFUSAL_SECONDS
                asyncio.get_running_loop().call_later(REFUSAL_SECONDS * 1.1, self.dispatch)
            self._metrics.retries.labels(run.stage.name, reason).inc()
            self._apply(active, active.execution.handed_back(failed.task_id))
            return
        active.end(failed.task_id, "failed", failed.message)
        if failed.reason == pb.Failed.INVALID:
            self._fail(active, "invalid_request", failed.message)
        elif failed.reason == pb.Failed.OUTPUT_STORE:
            self._fail(active, "output_store", failed.message)
        else:
            effects = active.execution.failed(failed.task_id, list(failed.lost_inputs))
            self._retrying(active, run, reason, f"{run.stage.role} {life.url}: {failed.message}")
            self._apply(active, effects)

    # ---- decisions

    def dispatch(self) -> None:
        """Gives ready stages to instances with room."""
        if not self._holds:
            for active, run, life in self.dispatcher.assignments():
                self._send(active, run, life)

    def _send(self, active: Active, run: Run, life: Life) -> None:
        job = active.job
        inputs = [output.life.as_input(output.done) for output in active.execution.inputs(run)]
        task_id = active.execution.dispatch(run, life)
        self._given(active, run, life)
        log.info("job=%s stage=%s try=%d state=running on=%s", job.id, run.stage.name, run.attempts, life.url)
        command = pb.Command(
            run=pb.Run(task_id=task_id, job_id=job.id, generation=job.generation, inputs=inputs)
        )
        for data in active.images if run.stage.images else ():
            command.run.images.add(data=data)
        life.send(command)

    def _given(self, active: Active, run: Run, life: Life) -> None:
        """Books the running ``run`` on ``life``."""
        job = active.job
        life.tasks[run.task_id] = self.costs.estimate(run.stage, job.model, job.generation, life.url)
        life.outbox[run.task_id] = life.slot_bytes(self._sizes.known(run.stage, job))
        life.jobs.add(job.id)
        life.dispatched += 1
        if life.solo:
            life.solo = run.task_id
        active.begin(run, life)
        if job.status is Status.QUEUED:
            job.status = Status.IN_PROGRESS
            job.started_at = time.time()
        self._changed(job)

    def _ended(self, life: Life, task_id: str) -> None:
        """The task no longer takes up a place."""
        life.tasks.pop(task_id, None)
        if life.solo == task_id:
            life.solo = ""

    def _apply(self, active: Active, effects: Effects[Life, Output]) -> None:
        for life, task_id in effects.release:
            life.outbox.pop(task_id, None)
            life.send(pb.Command(release=pb.Release(task_ids=[task_id])))
        for life, task_id in effects.cancel:
            # Its place stays taken until the role has said that it stopped.
            life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))
        if active.job.id not in self.active:
            return
        for run in active.execution.runs.values():
            if run.state is not State.READY:
                self.dispatcher.discard(active, run)
        for run in effects.ready:
            active.ready_since[run.stage.name] = time.time()
            self.dispatcher.push(active, run)

    def _retrying(self, active: Active, run: Run, reason: str, message: str) -> None:
        """A stage has to run again, if it has not been tried too often."""
        self._metrics.retries.labels(run.stage.name, reason).inc()
        log.warning("job=%s stage=%s try=%d: %s", active.job.id, run.stage.name, run.tries, message)
        if run.tries >= self._options.max_tries:
            self._fail(
                active, "stage_failed", f"{run.stage.name} failed {run.tries} times, at last: {message}"
            )

    # ---- ends

    def _fail(self, active: Active, code: str, message: str) -> None:
        active.job.error = JobError(code, message)
        self._finish(active, Status.FAILED)

    def _finish(self, active: Active, status: Status) -> None:
        job = active.job
        if self.active.pop(job.id, None) is None:
            return
        self._withdraw(active)
        job.completed_at = time.time()
        job.pace = None
        job.status = status
        job.progress = 100 if status is Status.COMPLETED else job.progress
        seconds = job.completed_at - job.created_at
        self._metrics.requests.labels(job.model, status.value).inc()
        self._metrics.request_seconds.labels(job.model).observe(seconds)
        self._metrics.queue_seconds.labels(job.model).observe(
            sum(phase.seconds for phase in job.phases if phase.name == "queue")
        )
        why = f" code={job.error.code} reason={job.error.message!r}" if job.error else ""
        log.info("job=%s state=%s seconds=%.3f%s", job.id, status.value, seconds, why)
        self._finished(job)

    def _withdraw(self, active: Active) -> None:
        """Everything the job has in queues, in instances and in memory comes back."""
        active.forget_images()
        for run in active.execution.runs.values():
            self.dispatcher.discard(active, run)
            if run.state is State.RUNNING:
                active.end(run.task_id, "cancelled")
        self._apply(active, active.execution.cancel())
        for life in active.lives:
            life.jobs.discard(active.job.id)


def result_task(job: Job) -> str:
    """The task that made the file of a completed job; empty if there is none."""
    return job.result.task_id if job.result is not None else ""
