"""Jobs: what a client asked for and what became of it."""

from __future__ import annotations

import enum
import secrets
import time
from dataclasses import dataclass, field

from triptych_proto.control_pb2 import Generation, MediaFile


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


@dataclass(frozen=True)
class Phase:
    """A span of a job's life, in seconds: where the time went, in order.

    ``name`` is ``queue``, a stage (``encode``, ``denoise``, ``decode``), ``transfer`` or ``save``.
    """

    name: str
    seconds: float
    url: str = ""  # the instance that spent it


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
    phases: list[Phase] = field(default_factory=list)
    peak_memory_bytes: int = 0

    @staticmethod
    def new(model: str, generation: Generation) -> Job:
        return Job(
            id=f"video_{secrets.token_hex(16)}", model=model, generation=generation, created_at=time.time()
        )
