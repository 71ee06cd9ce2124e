"""Jobs: what a client asked for and what became of it."""

from __future__ import annotations

import enum
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.graph import GENERATION
from triptych_proto.control_pb2 import Generation, MediaFile

JOB_ID = re.compile(r"video_[0-9a-f]{32}")


class Status(str, enum.Enum):
    """The four states a client can see. ``completed`` and ``failed`` are final."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED)


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a short code for programs and a sentence for people."""

    code: str
    message: str


class Phase(NamedTuple):
    """A span of a job's life, in seconds: where the time went, in order.

    ``name`` is ``queue``, a stage (``encode``, ``denoise``, ``decode``), ``transfer`` or ``save``.
    """

    name: str
    seconds: float
    url: str = ""  # the instance that spent it


@dataclass
class Attempt:
    """One run of one stage on one instance. Times are seconds since the epoch, on the orchestrator's clock;
    the durations are the instance's own.
    """

    stage: str
    number: int  # from 1
    url: str
    incarnation: str
    queued_at: float  # the stage's inputs were there
    started_at: float  # given to the instance
    inputs_at: float | None = None  # the instance had copies of its inputs
    ended_at: float | None = None
    outcome: str = "running"  # then done, failed, lost, refused or cancelled
    reason: str = ""
    waiting: float = 0.0  # behind another task, or for room in a pool
    transfer: float = 0.0
    transfer_bytes: int = 0
    engine: str = ""  # that moved the inputs
    compute: float = 0.0
    saving: float = 0.0  # media encoding that did not overlap with compute
    batch: int = 1  # runs that shared the computing, this one included
    task_id: str = ""


@dataclass(frozen=True)
class Pace:
    """How the running stage gets on."""

    stage: str
    step: int
    steps: int
    steps_per_second: float | None = None  # None: too early to tell
    seconds_left: float | None = None  # of the whole job


@dataclass(frozen=True)
class Once:
    """A request that makes one job, however often it is sent. Both are hashes, in hexadecimal."""

    key: str  # of the client's key, and of whose it is
    request: str  # of what is asked for


@dataclass
class Job:
    """One generation. Times are seconds since the epoch."""

    id: str
    model: str
    generation: Generation
    created_at: float
    status: Status = Status.QUEUED
    progress: int = 0  # percent
    started_at: float | None = None
    completed_at: float | None = None
    error: JobError | None = None
    file: MediaFile | None = None
    file_url: str = ""  # endpoint URL of the decoder that wrote the file
    attempts: list[Attempt] = field(default_factory=list)  # in the order of their starts
    pace: Pace | None = None
    peak_memory_bytes: int = 0
    priority: int = 0  # higher goes first
    deadline: float | None = None  # not finished by then: failed
    owner: str = ""  # the orchestrator that runs it
    remixed_from: str | None = None  # the id of the job whose parameters it took
    idempotency_key: str | None = None  # as in Once, of which it is the only job
    request_hash: str | None = None
    webhook_url: str | None = None  # that is still to be told of the end

    @staticmethod
    def new(model: str, generation: Generation, priority: int = 0, timeout: float | None = None) -> Job:
        """``timeout`` is in seconds from now."""
        now = time.time()
        return Job(
            id=f"video_{secrets.token_hex(16)}",
            model=model,
            generation=generation,
            created_at=now,
            priority=priority,
            deadline=None if timeout is None else now + timeout,
        )

    @property
    def result(self) -> Attempt | None:
        """The attempt that made the file; not always the one that began last, nor of the stage that did."""
        if self.file is None:
            return None
        last = GENERATION.stages[-1].name
        made = [attempt for attempt in self.attempts if attempt.stage == last and attempt.outcome == "done"]
        return made[-1] if made else None

    @property
    def phases(self) -> list[Phase]:
        """Where the time went that led to the result: attempts in vain are left out."""
        queued = sum(attempt.started_at - attempt.queued_at + attempt.waiting for attempt in self.attempts)
        phases = [Phase("queue", queued)] if self.attempts else []
        result = self.result
        for stage in GENERATION.stages:
            done = [a for a in self.attempts if a.stage == stage.name and a.outcome == "done"]
            # An output that was lost is made again; what began after the result did has no part in it.
            before = [a for a in done if result is None or a.started_at <= result.started_at]
            for attempt in (before or done)[-1:]:
                if attempt.engine:
                    phases.append(Phase("transfer", attempt.transfer, attempt.url))
                phases.append(Phase(attempt.stage, attempt.compute, attempt.url))
                if attempt is result:
                    phases.append(Phase("save", attempt.saving, attempt.url))
        return phases
