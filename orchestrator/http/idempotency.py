"""``Idempotency-Key``: a request that is sent again gets the job that it made the first time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.jobs import Job, Once

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def once(request: web.Request, asked: Mapping[str, Any]) -> Once | None:
    """The request's key, if it has one, with a hash of what it asks for, however its body is encoded.

    Keys of clients that show different credentials are different. Raises ApiError: 400.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise invalid(HEADER, f"{HEADER} must be 1 to 255 printable ASCII characters")
    return Once(_hash([request.headers.get("Authorization", ""), key]), _hash(asked))


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


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
