"""``/v1/videos/sync``: makes a video while its client waits, and answers with the file."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from orchestrator.http import submission
from orchestrator.http.content import media_file, send_video
from orchestrator.http.errors import ApiError
from orchestrator.http.representation import representation
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.jobs import Job

LOOK_SECONDS = 0.25  # between two looks at whether the client is still there
GRACE_SECONDS = 10.0  # after which a job should have failed, for one that is not seen to


async def sync(request: web.Request) -> web.StreamResponse:
    """A client that leaves takes its job with it, unless it can come back with its idempotency key.

    Raises ApiError: as for a video, then 404 when it is deleted, 422 when it fails, 504 when it takes too
    long; ``X-Video-Id`` names it. None of these is worth an automatic retry.
    """
    seconds = request.app[OPTIONS].sync_timeout
    made = await submission.submit(request, max_seconds=seconds)
    headers = {"X-Video-Id": made.job.id, **made.headers}
    try:
        job = await _end(request, made, seconds)
        video = representation(job, None, None)
        media_file(job)
        headers["X-Inference-Time-S"] = f"{video['inference_time_s']:.3f}"
        headers["X-Peak-Memory-MB"] = f"{video['peak_memory_mb']:.1f}"
        return await send_video(request, job, headers)
    except ApiError as error:
        error.headers.update(headers)
        error.headers["x-should-retry"] = "false"
        raise


async def _end(request: web.Request, made: submission.Submission, seconds: float) -> Job:
    service, job_id = request.app[SERVICE], made.job.id
    over = asyncio.ensure_future(service.finished(job_id))
    latest = time.monotonic() + seconds + GRACE_SECONDS
    try:
        while not over.done() and time.monotonic() < latest and not _left(request):
            await asyncio.wait([over], timeout=LOOK_SECONDS)
    finally:  # a server may cancel the handlers of clients that left, or of all when it stops
        ended = over.done()
        over.cancel()
        if not ended and not made.keyed and _left(request):
            await service.delete(job_id)
    if not ended and _left(request):
        raise ConnectionResetError("the client has left")
    job = over.result() if ended else made.job
    if not ended or (job and job.error and job.error.code == "timeout"):
        raise ApiError(504, f"video {job_id} is not finished within its time", code="timeout")
    if job is None:
        raise ApiError(404, f"video {job_id} was deleted", code="video_not_found", param="id")
    return job


def _left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
