"""Routes the stages of all jobs to role instances, and takes in what these report."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.execution import Effects, Execution, StageRun, State
from orchestrator.graph import GENERATION, Graph
from orchestrator.jobs import Job, JobError, Phase, Status
from orchestrator.metrics import Metrics
from orchestrator.peers import Life
from orchestrator.policy import least_loaded
from triptych_proto import control_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """What a finished task reported, and the life that holds it."""

    life: Life
    done: pb.Done


Run = StageRun[Life, Output]
Queue = OrderedDict[tuple[str, str], "Run"]  # (job id, stage), first come first served


@dataclass(frozen=True)
class SchedulerOptions:
    max_tries: int = 4  # of one stage, whatever ended them
    job_seconds: float = 3600.0  # from acceptance to the end
    absence_seconds: float = 300.0  # without any instance of a role that is needed


@dataclass
class Active:
    """A job that is not over."""

    job: Job
    execution: Execution[Life, Output]
    ready_since: dict[str, float] = field(default_factory=dict)  # by stage, monotonic
    queued_seconds: float = 0.0
    phases: dict[str, list[Phase]] = field(default_factory=dict)  # by stage
    steps: dict[str, float] = field(default_factory=dict)  # share of a running stage that is done
    transfers: dict[str, list[pb.Transfer]] = field(default_factory=dict)


class Scheduler:
    """All active jobs and their queues. Every method runs on the event loop and returns at once.

    The cost of a decision depends on the number of instances, not on the length of the queues.
    """

    def __init__(
        self,
        epoch: str,
        lives: Callable[[], list[Life]],
        finished: Callable[[Job], None],
        metrics: Metrics,
        options: SchedulerOptions,
        graph: Graph = GENERATION,
    ) -> None:
        """``finished`` hears of every job that completed or failed, with its outcome filled in."""
        self.active: dict[str, Active] = {}
        self.queues: dict[tuple[str, str], Queue] = {}  # by role and model
        self._epoch = epoch
        self._lives = lives
        self._finished = finished
        self._metrics = metrics
        self._options = options
        self._graph = graph
        self._absent_since: dict[tuple[str, str], float] = {}

    # ---- jobs

    def add(self, job: Job) -> None:
        active = Active(job, Execution(job.id, self._graph, self._epoch))
        self.active[job.id] = active
        self._apply(active, active.execution.start())
        self._dispatch()

    def remove(self, job_id: str) -> bool:
        """Takes a job out, wherever it is; its compute stops at the next step, its slots come back."""
        active = self.active.pop(job_id, None)
        if active is None:
            return False
        self._withdraw(active)
        self._dispatch()
        return True

    def expire(self) -> None:
        """Ends jobs that have waited too long. To be called about once a second."""
        now, wall = time.monotonic(), time.time()
        present = {(life.role, life.model.name) for life in self._lives()}
        for key, queue in self.queues.items():
            if key in present or not queue:
                self._absent_since.pop(key, None)
            else:
                self._absent_since.setdefault(key, now)
        for active in list(self.active.values()):
            if wall - active.job.created_at > self._options.job_seconds:
                self._fail(active, "timeout", f"not finished within {self._options.job_seconds:.0f} s")
        for key, since in list(self._absent_since.items()):
            if now - since > self._options.absence_seconds:
                for job_id, _ in list(self.queues[key]):
                    message = f"there was no {key[0]} for {self._options.absence_seconds:.0f} s"
                    self._fail(self.active[job_id], "no_instance", message)

    # ---- what the peers say

    def joined(self, life: Life, hello: pb.Hello) -> None:
        """Work of an earlier stream that nobody waits for any more is stopped, then new work is given."""
        life.tasks.update(hello.running)  # they take up places until they have ended
        for task_id in hello.running:
            life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))
        if hello.held:
            life.send(pb.Command(release=pb.Release(task_ids=[done.task_id for done in hello.held])))
        self._dispatch()

    def left(self, life: Life) -> None:
        for active in list(self.active.values()):
            lost = [
                run
                for run in active.execution.runs.values()
                if run.instance is life and run.task_id in life.tasks
            ]
            effects = active.execution.instance_lost(life)
            for run in lost:
                self._retrying(active, run, "instance lost", f"{life} was lost")
            self._apply(active, effects)
        life.tasks.clear()
        self._dispatch()

    def received(self, life: Life, event: pb.Event) -> None:
        kind = event.WhichOneof("event")
        if kind == "stats":
            life.pools = tuple(event.stats.pools)
            life.traffic = tuple(event.stats.traffic)
            life.choices = tuple(event.stats.choices)
            life.resident_bytes = event.stats.resident_bytes
            life.draining = event.stats.draining
        elif kind == "input_ready":
            self._input_ready(life, event.input_ready)
        elif kind == "progress":
            self._progress(life, event.progress)
        elif kind == "done":
            self._done(life, event.done)
            self._dispatch()
        elif kind == "failed":
            self._failed(life, event.failed)
            self._dispatch()

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
        active.transfers[run.stage.name] = list(ready.transfers)
        for transfer in ready.transfers:
            edge = f"{'+'.join(run.stage.inputs)}-{run.stage.name}"
            self._metrics.transfer_bytes.labels(edge, transfer.engine).inc(transfer.bytes)
            self._metrics.transfer_seconds.labels(edge, transfer.engine).observe(transfer.seconds)
        self._apply(active, active.execution.inputs_read(ready.task_id))

    def _progress(self, life: Life, progress: pb.Progress) -> None:
        found = self._running(life, progress.task_id)
        if found is not None and progress.total:
            active, run = found
            active.steps[run.stage.name] = min(progress.step / progress.total, 1.0)
            self._show_progress(active)

    def _done(self, life: Life, done: pb.Done) -> None:
        life.tasks.discard(done.task_id)
        found = self._running(life, done.task_id)
        if found is None:
            if done.HasField("slot"):
                life.send(pb.Command(release=pb.Release(task_ids=[done.task_id])))
            return
        active, run = found
        stage, timing, job = run.stage, done.timing, active.job
        active.queued_seconds += timing.waiting
        phases = [Phase("transfer", timing.transfer, str(life.url))] if stage.inputs else []
        phases.append(Phase(stage.name, timing.compute, str(life.url)))
        if done.HasField("file"):
            phases.append(Phase("save", timing.saving, str(life.url)))
        active.phases[stage.name] = phases
        self._metrics.stage_seconds.labels(stage.name).observe(timing.compute)
        job.peak_memory_bytes = max(job.peak_memory_bytes, done.peak_memory_bytes)
        active.steps[stage.name] = 1.0
        self._show_progress(active)
        self._apply(active, active.execution.done(life, done.task_id, Output(life, done)))
        result = active.execution.result
        if result is not None:
            job.file = result.done.file
            job.file_url = str(result.life.url)
            self._finish(active, Status.COMPLETED)

    def _failed(self, life: Life, failed: pb.Failed) -> None:
        life.tasks.discard(failed.task_id)
        found = self._running(life, failed.task_id)
        if found is None:
            return
        active, run = found
        if failed.reason == pb.Failed.INVALID:
            self._fail(active, "invalid_request", failed.message)
        elif failed.reason == pb.Failed.OUTPUT_STORE:
            self._fail(active, "output_store", failed.message)
        else:
            effects = active.execution.failed(failed.task_id, list(failed.lost_inputs))
            reason = pb.Failed.Reason.Name(failed.reason).lower()
            self._retrying(active, run, reason, f"{run.stage.role} {life.url}: {failed.message}")
            self._apply(active, effects)

    # ---- decisions

    def _dispatch(self) -> None:
        """Gives ready stages to instances with room, oldest first."""
        for (role, model), queue in self.queues.items():
            if not queue:
                continue
            lives = [life for life in self._lives() if life.role == role and life.model.name == model]
            while queue:
                free = [life for life in lives if life.free]
                if not free:
                    break
                (job_id, _), run = queue.popitem(last=False)
                # An instance on which this stage has failed gets it again only if there is no other.
                life = least_loaded([life for life in free if life not in run.avoid] or free)
                self._send(self.active[job_id], run, life)

    def _send(self, active: Active, run: Run, life: Life) -> None:
        job = active.job
        inputs = [output.life.as_input(output.done) for output in active.execution.inputs(run)]
        task_id = active.execution.dispatch(run, life)
        life.tasks.add(task_id)
        life.dispatched += 1
        active.queued_seconds += time.monotonic() - active.ready_since[run.stage.name]
        if job.status is Status.QUEUED:
            job.status = Status.IN_PROGRESS
            job.started_at = time.time()
        log.info("job=%s stage=%s try=%d state=running on=%s", job.id, run.stage.name, run.attempts, life.url)
        life.send(
            pb.Command(run=pb.Run(task_id=task_id, job_id=job.id, generation=job.generation, inputs=inputs))
        )

    def _apply(self, active: Active, effects: Effects[Life, Output]) -> None:
        for life, task_id in effects.release:
            life.send(pb.Command(release=pb.Release(task_ids=[task_id])))
        for life, task_id in effects.cancel:
            # Its place stays taken until the role has said that it stopped.
            life.send(pb.Command(cancel=pb.Cancel(task_id=task_id)))
        if active.job.id not in self.active:
            return
        for run in effects.ready:
            active.ready_since[run.stage.name] = time.monotonic()
            key = (run.stage.role, active.job.model)
            self.queues.setdefault(key, OrderedDict())[active.job.id, run.stage.name] = run
        for run in active.execution.runs.values():
            if run.state is not State.READY:
                queue = self.queues.get((run.stage.role, active.job.model))
                if queue is not None:
                    queue.pop((active.job.id, run.stage.name), None)

    def _retrying(self, active: Active, run: Run, reason: str, message: str) -> None:
        """A stage has to run again, if it has not been tried too often."""
        self._metrics.retries.labels(run.stage.name, reason).inc()
        active.steps.pop(run.stage.name, None)
        log.warning("job=%s stage=%s try=%d: %s", active.job.id, run.stage.name, run.attempts, message)
        if run.attempts >= self._options.max_tries:
            self._fail(
                active, "stage_failed", f"{run.stage.name} failed {run.attempts} times, at last: {message}"
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
        order = [stage.name for stage in self._graph.stages]
        job.phases = [Phase("queue", active.queued_seconds)]
        job.phases += [phase for name in order for phase in active.phases.get(name, [])]
        job.status = status
        job.progress = 100 if status is Status.COMPLETED else job.progress
        seconds = job.completed_at - job.created_at
        self._metrics.requests.labels(job.model, status.value).inc()
        self._metrics.request_seconds.labels(job.model).observe(seconds)
        self._metrics.queue_seconds.labels(job.model).observe(active.queued_seconds)
        why = f" code={job.error.code} reason={job.error.message!r}" if job.error else ""
        log.info("job=%s state=%s seconds=%.3f%s", job.id, status.value, seconds, why)
        self._finished(job)

    def _withdraw(self, active: Active) -> None:
        """Everything the job has in queues and instances comes back."""
        for run in active.execution.runs.values():
            queue = self.queues.get((run.stage.role, active.job.model))
            if queue is not None:
                queue.pop((active.job.id, run.stage.name), None)
        self._apply(active, active.execution.cancel())

    def _show_progress(self, active: Active) -> None:
        done = sum(stage.share * active.steps.get(stage.name, 0.0) for stage in self._graph.stages)
        active.job.progress = max(active.job.progress, min(int(done), 99))
