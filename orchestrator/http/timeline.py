"""``/v1/videos/{id}/timeline``: every attempt at every stage of a job, also those in vain."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from orchestrator.http.videos import find_job
from orchestrator.jobs import Attempt


async def timeline(request: web.Request) -> web.Response:
    """In the order of their starts. Times are seconds since the epoch, with fractions."""
    job = await find_job(request)
    return web.json_response(
        {
            "object": "video.timeline",
            "id": job.id,
            "status": job.status.value,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "completed_at": job.completed_at,
            "attempts": [_representation(attempt) for attempt in job.attempts],
        }
    )


def _representation(attempt: Attempt) -> dict[str, Any]:
    return {
        "stage": attempt.stage,
        "try": attempt.number,
        "url": attempt.url,
        "incarnation": attempt.incarnation,
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "queued_at": attempt.queued_at,
        "started_at": attempt.started_at,
        "inputs_at": attempt.inputs_at,
        "ended_at": attempt.ended_at,
        "queue_seconds": max(attempt.started_at - attempt.queued_at, 0.0),  # clocks can be set back
        "waiting_seconds": attempt.waiting,
        "transfer_seconds": attempt.transfer,
        "transfer_bytes": attempt.transfer_bytes,
        "engine": attempt.engine,
        "compute_seconds": attempt.compute,
        "batch": attempt.batch,
        "save_seconds": attempt.saving,
    }
