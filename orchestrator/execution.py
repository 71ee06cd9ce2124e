"""The state machine of one job: which stages may run, whose outputs are needed, what must run again.

Pure bookkeeping without input or output, so that every interleaving can be tested. An *instance* is one
life of a role process; an output that died with its instance is made again from its inputs (lineage, as
in Spark's resilient distributed datasets).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.graph import Graph, Stage

Instance = TypeVar("Instance")  # what runs tasks
Output = TypeVar("Output")  # what is known of an output


class State(enum.Enum):
    WAITING = "waiting"  # for its inputs, or not needed now
    READY = "ready"  # in a queue
    RUNNING = "running"
    DONE = "done"


@dataclass
class StageRun(Generic[Instance, Output]):
    """A stage of one job, over all its attempts."""

    stage: Stage
    state: State = State.WAITING
    attempts: int = 0
    tries: int = 0  # attempts that count: those that failed, or ran on an instance that was lost
    losses: int = 0  # instances that were lost while they ran it
    task_id: str = ""  # of the latest attempt
    lost_task: str = ""  # the latest attempt that lost its instance
    instance: Instance | None = None  # runs the latest attempt, or holds its output
    output: Output | None = None  # None: not made yet, lost, or released
    has_inputs: bool = False  # the latest attempt no longer reads from its producers
    avoid: list[Instance] = field(default_factory=list)  # instances on which it failed

    @property
    def satisfied(self) -> bool:
        """It will not read its inputs again unless it is run again."""
        return self.state is State.DONE or (self.state is State.RUNNING and self.has_inputs)


@dataclass
class Effects(Generic[Instance, Output]):
    """What the caller has to do after an event."""

    ready: list[StageRun[Instance, Output]] = field(default_factory=list)  # put these in their role's queue
    release: list[tuple[Instance, str]] = field(
        default_factory=list
    )  # tell the instance to free this task's output
    cancel: list[tuple[Instance, str]] = field(default_factory=list)  # tell the instance to stop this task


class Execution(Generic[Instance, Output]):
    """The stages of one job. Every event method returns the effects it has.

    Events of a task that is not the latest attempt of a running stage change nothing: its output, if it
    has one, is released where it is.
    """

    def __init__(self, job_id: str, graph: Graph, epoch: str = "0") -> None:
        """``epoch`` names the life of the orchestrator: task ids never repeat, not over restarts either."""
        self.job_id = job_id
        self.graph = graph
        self.runs = {stage.name: StageRun[Instance, Output](stage) for stage in graph.stages}
        self._epoch = epoch
        self._last = self.runs[graph.stages[-1].name]

    # ---- queries

    @property
    def result(self) -> Output | None:
        """The output of the last stage, once it is there."""
        return self._last.output

    def running(self, task_id: str) -> StageRun[Instance, Output] | None:
        """The run whose latest attempt is ``task_id``, if it runs."""
        run = self.runs.get(_stage_of(task_id))
        return run if run and run.task_id == task_id and run.state is State.RUNNING else None

    def holder(self, task_id: str) -> Instance | None:
        """Where the latest attempt of its stage, if ``task_id`` is that, runs or has its output."""
        run = self.runs.get(_stage_of(task_id))
        return run.instance if run and run.task_id == task_id else None

    def inputs(self, run: StageRun[Instance, Output]) -> list[Output]:
        """The outputs that ``run`` needs; it is ready, so all are there."""
        outputs = [self.runs[name].output for name in run.stage.inputs]
        return [output for output in outputs if output is not None]

    # ---- events

    def start(self) -> Effects[Instance, Output]:
        return self._settle()

    def dispatch(self, run: StageRun[Instance, Output], instance: Instance) -> str:
        """The ready ``run`` goes to ``instance``; returns the id of this attempt's task."""
        if run.state is not State.READY:
            raise ValueError(f"stage {run.stage.name} of {self.job_id} is {run.state.value}, not ready")
        run.state = State.RUNNING
        run.attempts += 1
        run.instance = instance
        run.has_inputs = not run.stage.inputs
        run.task_id = f"{self.job_id}/{run.stage.name}/{self._epoch}-{run.attempts}"
        return run.task_id

    def adopt(self, instance: Instance, task_id: str) -> Effects[Instance, Output] | None:
        """An earlier life of the orchestrator dispatched ``task_id`` to ``instance``, and it is still there.

        Its further events will come as those of any task. None if it is of no use any more.
        """
        run = self.runs.get(_stage_of(task_id))
        if run is None or run.state not in (State.WAITING, State.READY):
            return None
        if run.lost_task == task_id:  # its instance was cut off and is back
            run.tries -= 1
            run.losses -= 1
            run.lost_task = ""
        run.state = State.RUNNING
        run.attempts = max(run.attempts, _attempt_of(task_id))
        run.instance = instance
        run.has_inputs = not run.stage.inputs
        run.task_id = task_id
        return self._settle()

    def inputs_read(self, task_id: str) -> Effects[Instance, Output]:
        """The task has copies of its inputs."""
        run = self.running(task_id)
        if run is None:
            return Effects()
        run.has_inputs = True
        return self._settle()

    def done(self, instance: Instance, task_id: str, output: Output) -> Effects[Instance, Output]:
        """The task has finished with ``output``."""
        run = self.running(task_id)
        if run is None:
            return Effects(release=[(instance, task_id)])
        run.state = State.DONE
        run.has_inputs = True
        run.output = output
        return self._settle()

    def failed(self, task_id: str, lost_inputs: list[str]) -> Effects[Instance, Output]:
        """The task has failed; the outputs of the tasks ``lost_inputs`` could not be read."""
        run = self.running(task_id)
        if run is None:
            return Effects()
        if run.instance is not None and not lost_inputs:
            run.avoid.append(run.instance)
        run.tries += 1
        run.state = State.WAITING
        release: list[tuple[Instance, str]] = []
        for other in self.runs.values():
            if other.task_id in lost_inputs and other.state is State.DONE:
                if other.instance is not None:
                    release.append((other.instance, other.task_id))
                self._forget_output(other)
        effects = self._settle()
        effects.release += release
        return effects

    def handed_back(self, task_id: str) -> Effects[Instance, Output]:
        """The instance did not take the task, or not to its end, for reasons of its own."""
        run = self.running(task_id)
        if run is None:
            return Effects()
        run.state = State.WAITING
        return self._settle()

    def instance_lost(self, instance: Instance) -> Effects[Instance, Output]:
        """The instance is gone, with all that ran there and all that it held."""
        for run in self.runs.values():
            if run.instance != instance:
                continue
            run.instance = None
            if run.state is State.RUNNING:
                run.state = State.WAITING
                run.tries += 1
                run.losses += 1
                run.lost_task = run.task_id
            elif run.state is State.DONE and run is not self._last:
                self._forget_output(run)
        return self._settle()

    def cancel(self) -> Effects[Instance, Output]:
        """The job is over, whatever its state: everything it has somewhere comes back."""
        effects = Effects[Instance, Output]()
        for run in self.runs.values():
            if run.instance is not None and run.state is State.RUNNING:
                effects.cancel.append((run.instance, run.task_id))
            elif run.instance is not None and run.output is not None and run is not self._last:
                effects.release.append((run.instance, run.task_id))
            run.state = State.WAITING
            run.output = None
        return effects

    # ---- rules

    def _settle(self) -> Effects[Instance, Output]:
        effects = Effects[Instance, Output]()
        for run in self.runs.values():
            if run.state is State.READY and not self._inputs_available(run):
                run.state = State.WAITING
        needed = self._mark_needed()
        for run in self.runs.values():
            if run.state is State.READY and run.stage.name not in needed:
                run.state = State.WAITING  # its consumer was adopted
        for run in self.runs.values():
            if run.state is State.WAITING and run.stage.name in needed and self._inputs_available(run):
                run.state = State.READY
                effects.ready.append(run)
            if run.output is not None and run is not self._last and self._consumed(run):
                if run.instance is not None:
                    effects.release.append((run.instance, run.task_id))
                run.output = None
        return effects

    def _mark_needed(self) -> set[str]:
        """The stages whose output somebody waits for; those that have given it away must run again."""
        needed: set[str] = set()
        for stage in reversed(self.graph.stages):
            run = self.runs[stage.name]
            consumers = [self.runs[consumer.name] for consumer in self.graph.consumers(stage.name)]
            waits = any(c.stage.name in needed and c.state in (State.WAITING, State.READY) for c in consumers)
            if waits or run is self._last:
                needed.add(stage.name)
                if run.state is State.DONE and run.output is None:
                    run.state = State.WAITING
        return needed

    def _inputs_available(self, run: StageRun[Instance, Output]) -> bool:
        return all(self.runs[name].output is not None for name in run.stage.inputs)

    def _consumed(self, run: StageRun[Instance, Output]) -> bool:
        return all(self.runs[consumer.name].satisfied for consumer in self.graph.consumers(run.stage.name))

    def _forget_output(self, run: StageRun[Instance, Output]) -> None:
        run.state = State.WAITING
        run.output = None


def _attempt_of(task_id: str) -> int:
    number = task_id.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0


def _stage_of(task_id: str) -> str:
    return task_id.rsplit("/", 2)[-2] if task_id.count("/") >= 2 else ""
