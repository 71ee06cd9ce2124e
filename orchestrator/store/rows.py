"""Jobs as rows: a copy of every field, and back without loss.

JSON columns hold their text as Python writes it, in ASCII with escapes, so they take any string, one with NUL
or half a surrogate pair too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf import json_format

from orchestrator.jobs import Attempt, Job, JobError, Pace, Status
from orchestrator.store.errors import StoreError
from triptych_proto.control_pb2 import Generation, MediaFile

Timed = TypeVar("Timed", Attempt, Pace)

_COLUMNS = [field.name for field in fields(Job)]
_FIXED = (
    "id", "model", "created_at", "priority", "deadline", "owner", "remixed_from", "idempotency_key",
    "request_hash",
)  # fmt: skip
_CHANGING = ("progress", "started_at", "completed_at", "file_url", "peak_memory_bytes", "webhook_url")


def row(job: Job) -> dict[str, Any]:
    """The job's values at this moment: the job goes on changing while the store's thread writes."""
    return {
        **{name: getattr(job, name) for name in _FIXED},
        "generation": json_format.MessageToDict(job.generation, preserving_proto_field_name=True),
        **changing(job),
    }


def changing(job: Job) -> dict[str, Any]:
    """Those that can change later. To write the others too would have SQLite write their indexes again."""
    return {
        **{name: getattr(job, name) for name in _CHANGING},
        "status": job.status.value,
        "file": job.file and json_format.MessageToDict(job.file, preserving_proto_field_name=True),
        "error": job.error and asdict(job.error),
        "attempts": [_plain(attempt) for attempt in job.attempts],
        "pace": job.pace and _plain(job.pace),
    }


def job(row: sa.RowMapping) -> Job:
    """Raises StoreError for a row that no release up to this one has written."""
    try:
        return Job(
            **{
                **{name: row[name] for name in _COLUMNS},
                "status": Status(row["status"]),
                "generation": json_format.ParseDict(row["generation"], Generation()),
                "file": None if row["file"] is None else json_format.ParseDict(row["file"], MediaFile()),
                "error": None if row["error"] is None else JobError(**row["error"]),
                "attempts": [_timed(Attempt, values) for values in row["attempts"]],
                "pace": None if row["pace"] is None else _timed(Pace, row["pace"]),
            }
        )
    except (TypeError, ValueError, json_format.ParseError) as error:
        raise StoreError(f"job {row['id']} cannot be read: {error}") from error


def _plain(value: Attempt | Pace) -> dict[str, Any]:
    """JSON has no infinities and no NaN, and a role may report one: they become ``inf`` and so on."""
    return {
        # Shallow: these hold nothing but numbers and strings.
        name: str(item) if isinstance(item, float) and not math.isfinite(item) else item
        for name, item in vars(value).items()
    }


def _timed(kind: type[Timed], values: dict[str, Any]) -> Timed:
    floats = {field.name for field in fields(kind) if str(field.type).startswith("float")}
    spelled = {name: float(values[name]) for name in floats & values.keys() if isinstance(values[name], str)}
    return kind(**{**values, **spelled})
