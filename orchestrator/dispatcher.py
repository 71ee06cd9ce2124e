"""Queues of ready stages, and which instance gets the next one.

The cost of a decision depends on the number of instances, not on the length of the queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.active import Active, Run
from orchestrator.cost import CostModel, Sizes
from orchestrator.life import Life
from orchestrator.policy import Policy
from orchestrator.queue import Key, StageQueue

SUSPECT_LOSSES = 2  # instances that were lost while they ran a stage; from then on it runs by itself

Item = tuple[Active, Run]


@dataclass
class _Line:
    """What waits for instances of one role that serve one model."""

    policy: Policy
    waiting: StageQueue[Item] = field(default_factory=StageQueue)
    suspects: dict[Key, Item] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.suspects)


class Dispatcher:
    """Gives ready stages to instances with room, by priority and age.

    A stage during whose runs instances were lost may be what kills them. It gets an instance to itself, so
    that it takes nobody else's work along, and nobody else's losses are blamed on it.
    """

    def __init__(
        self,
        lives: Callable[[], list[Life]],
        policy: Callable[[], Policy],
        costs: CostModel,
        sizes: Sizes,
        priority_seconds: float,
    ) -> None:
        self._lines: dict[tuple[str, str], _Line] = {}  # by role and model
        self._lives = lives
        self._policy = policy
        self._costs = costs
        self._sizes = sizes
        self._priority_seconds = priority_seconds

    def push(self, active: Active, run: Run) -> None:
        line = self._line(active, run)
        key = (active.job.id, run.stage.name)
        if run.losses >= SUSPECT_LOSSES:
            line.suspects[key] = (active, run)
        else:
            rank = active.job.created_at - active.job.priority * self._priority_seconds
            line.waiting.push(key, (active, run), rank)

    def discard(self, active: Active, run: Run) -> None:
        """It is no longer ready. Not there: fine."""
        line = self._line(active, run)
        key = (active.job.id, run.stage.name)
        line.waiting.discard(key)
        if line.suspects.pop(key, None) is not None:
            for life in self._lives():
                if life.solo == _solo(key):
                    life.solo = ""

    def depth(self, role: str, model: str) -> int:
        """Ready stages that any instance of this role and model may get."""
        line = self._lines.get((role, model))
        return len(line) if line else 0

    def depths(self) -> Iterable[tuple[tuple[str, str], int]]:
        return [(key, len(line)) for key, line in self._lines.items()]

    def queued(self, role: str, model: str) -> list[str]:
        """The jobs that wait there."""
        line = self._lines.get((role, model))
        return [job_id for keys in (line.waiting, line.suspects) for job_id, _ in keys] if line else []

    def assignments(self) -> Iterable[tuple[Active, Run, Life]]:
        """Decides one by one; each must be carried out before the next is asked for."""
        lines = [(role, model, line) for (role, model), line in self._lines.items() if line]
        everybody = self._lives() if lines else []
        for role, model, line in lines:
            lives = [life for life in everybody if life.role == role and life.model_name == model]
            yield from self._suspects(line, lives)
            while line.waiting:
                active, run = line.waiting.peek()
                nbytes = self._sizes.known(run.stage, active.job)
                # Most are full most of the time: what says so at once comes first.
                free = [
                    life
                    for life in lives
                    if len(life.tasks) < life.capacity and life.free and life.has_room(nbytes)
                ]
                if not free:
                    break
                line.waiting.pop()
                yield active, run, self._choose(line, active, run, free)

    def _choose(self, line: _Line, active: Active, run: Run, free: list[Life]) -> Life:
        seconds = self._costs.estimator(run.stage, active.job.model, active.job.generation)
        # An instance on which this stage has failed gets it again only if there is no other.
        usable = [life for life in free if life not in run.avoid] if run.avoid else free
        return line.policy.choose(usable or free, lambda life: seconds(life.url))

    def _suspects(self, line: _Line, lives: list[Life]) -> Iterable[tuple[Active, Run, Life]]:
        """Empties an instance for each suspect, as many at once as there are others to go on with."""
        for key, (active, run) in list(line.suspects.items()):
            solo = _solo(key)
            usable = [life for life in lives if not life.draining and life.solo in ("", solo)]
            life = next((life for life in usable if life.solo == solo), None)
            if life is None and usable:
                life = min(usable, key=lambda life: (len(life.tasks), life.dispatched))
                life.solo = solo  # it gets no further task until it is empty
            if life is not None and not life.tasks and life.taken_by_others < life.capacity:
                del line.suspects[key]
                yield active, run, life

    def _line(self, active: Active, run: Run) -> _Line:
        key = (run.stage.role, active.job.model)
        if key not in self._lines:
            self._lines[key] = _Line(self._policy())
        return self._lines[key]


def _solo(key: Key) -> str:
    return f"{key[0]}/{key[1]}"
