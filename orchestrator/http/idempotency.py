"""``Idempotency-Key``: a request that is sent again gets the job that it made the first time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.references import Link
from orchestrator.jobs import Job, Once

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def once(request: web.Request, asked: Mapping[str, Any], part: int = 0) -> Once | None:
    """The request's key, if it has one, with a hash of what it asks for, however its body is encoded; of
    images that is their bytes, or their URLs. A request for several jobs has a key for each ``part``.

    Keys of clients that show different credentials are different. Raises ApiError: 400.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise invalid(HEADER, f"{HEADER} must be 1 to 255 printable ASCII characters")
    whose = [request.headers.get("Authorization", ""), key, *([part] if part else [])]
    return Once(_hash(whose), _hash(asked))


def same(job: Job, once: Once) -> Job:
    """The job. Raises ApiError, 409, if its key came with another request."""
    if job.request_hash != once.request:
        raise ApiError(
            409,
            f"this {HEADER} belongs to another request, which made {job.id}",
            code="idempotency_key_reused",
            param=HEADER,
            headers={"x-should-retry": "false"},  # or OpenAI's SDKs would send it again
        )
    return job


def _plain(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Link):
        return {"url": value.url}
    raise TypeError(type(value).__name__)


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()
