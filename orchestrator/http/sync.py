"""``/v1/videos/sync``: makes a video while its client waits, and answers with the file."""

from __future__ import annotations

from aiohttp import web

from orchestrator.http import submission, waiting
from orchestrator.http.content import media_file, send_video
from orchestrator.http.errors import ApiError
from orchestrator.http.representation import representation
from orchestrator.http.service import OPTIONS


async def sync(request: web.Request) -> web.StreamResponse:
    """Raises ApiError: as for a video, then 404 when it is deleted, 422 when it fails, 504 when it takes too
    long; ``X-Video-Id`` names it. None of these is worth an automatic retry.
    """
    seconds = request.app[OPTIONS].sync_timeout
    made = await submission.submit(request, max_seconds=seconds, single=True)
    headers = {"X-Video-Id": made.jobs[0].id, **made.headers}
    try:
        (job,) = await waiting.ends(request, made, seconds)
        video = representation(job, None, None)
        media_file(job)
        headers["X-Inference-Time-S"] = f"{video['inference_time_s']:.3f}"
        headers["X-Peak-Memory-MB"] = f"{video['peak_memory_mb']:.1f}"
        return await send_video(request, job, headers)
    except ApiError as error:
        error.headers.update(headers)
        error.headers["x-should-retry"] = "false"
        raise
