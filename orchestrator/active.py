"""A job that is not over: its state machine, its attempts, its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from orchestrator.cost import CostModel
from orchestrator.execution import Execution, StageRun
from orchestrator.graph import Graph
from orchestrator.jobs import Attempt, Job, Pace
from orchestrator.life import Life
from orchestrator.reference_memory import Share
from triptych_proto import control_pb2 as pb

MAX_ATTEMPTS = 64  # shown of one job


@dataclass(frozen=True)
class Output:
    """What a finished task reported, and the life that holds it."""

    life: Life
    done: pb.Done


Run = StageRun[Life, Output]


@dataclass
class Active:
    """What the scheduler keeps of a job until it ends."""

    job: Job
    execution: Execution[Life, Output]
    ready_since: dict[str, float] = field(default_factory=dict)  # by stage, seconds since the epoch
    lives: set[Life] = field(default_factory=set)  # that have, or had, something of it
    images: tuple[bytes, ...] = ()  # reference images, as the client sent them
    share: Share | None = None  # of the memory for them
    unsaved: bool = False  # the job has changed since its owner last wrote it to a shared store
    _steps: dict[str, float] = field(default_factory=dict)  # share of a stage that is done
    _began: tuple[str, int, float] = ("", 0, 0.0)  # task, step and time (monotonic) of its first progress

    def forget_images(self) -> None:
        self.images = ()
        if self.share is not None:
            self.share.give_back()

    def begin(self, run: Run, life: Life) -> None:
        """``run`` was dispatched to ``life``, now or by an earlier orchestrator."""
        self.lives.add(life)
        self.unsaved = True
        now = time.time()
        known = self.attempt(run.task_id)
        if known is not None:  # adopted
            known.outcome, known.reason = "running", ""
            return
        attempt = Attempt(
            stage=run.stage.name,
            number=run.attempts,
            url=life.url_text,
            incarnation=life.incarnation,
            queued_at=self.ready_since.get(run.stage.name, now),
            started_at=now,
            task_id=run.task_id,
        )
        self.job.attempts.append(attempt)
        vain = [a for a in self.job.attempts if a.outcome not in ("done", "running")]
        if len(self.job.attempts) > MAX_ATTEMPTS and vain:
            self.job.attempts.remove(vain[0])

    def attempt(self, task_id: str) -> Attempt | None:
        return next((a for a in reversed(self.job.attempts) if a.task_id == task_id), None)

    def end(self, task_id: str, outcome: str, reason: str = "", timing: pb.Timing | None = None) -> None:
        attempt = self.attempt(task_id)
        if attempt is None:
            return
        attempt.ended_at = time.time()
        attempt.outcome, attempt.reason = outcome, reason
        if timing is not None:
            attempt.waiting, attempt.transfer = timing.waiting, timing.transfer
            attempt.compute, attempt.saving = timing.compute, timing.saving
            attempt.batch = max(timing.batch, 1)
        self._steps[attempt.stage] = 1.0 if outcome == "done" else 0.0

    def inputs_read(self, ready: pb.InputReady) -> None:
        attempt = self.attempt(ready.task_id)
        if attempt is None:
            return
        attempt.inputs_at = time.time()
        attempt.engine = ",".join(sorted({transfer.engine for transfer in ready.transfers}))
        attempt.transfer_bytes = sum(transfer.bytes for transfer in ready.transfers)

    def progress(self, run: Run, step: int, steps: int, graph: Graph, costs: CostModel) -> None:
        """``step`` of ``steps`` of the running stage are done."""
        step = min(step, steps)
        self._steps[run.stage.name] = step / steps
        now = time.monotonic()
        task, first, began = self._began
        if task != run.task_id:
            first, began = step, now
            self._began = run.task_id, step, now
        rate = (step - first) / (now - began) if step > first and now > began else None
        left = None
        if rate:
            later = graph.stages[graph.stages.index(run.stage) + 1 :]
            left = (steps - step) / rate + sum(
                costs.typical(stage, self.job.model, self.job.generation)
                for stage in later
                if costs.known(stage, self.job.model)
            )
        self.job.pace = Pace(run.stage.name, step, steps, rate, left)
        self.show_progress(graph)

    def show_progress(self, graph: Graph) -> None:
        """A client sees the percentage grow only, also when a stage has to run again."""
        done = sum(stage.share * self._steps.get(stage.name, 0.0) for stage in graph.stages)
        self.job.progress = max(self.job.progress, min(int(done), 99))
        self.unsaved = True
