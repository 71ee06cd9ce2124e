"""``/v1/videos``: create, remix, list, retrieve and delete, in the shape of OpenAI's videos API."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from orchestrator.http import submission
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.representation import representation
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.jobs import Job

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # other ids are no job's, and no business of the store's


async def create(request: web.Request) -> web.Response:
    """The first of the videos, with the ids of all where the request is for several."""
    made = await submission.submit(request)
    reply = represent(request, made.jobs[0])
    if len(made.jobs) > 1:
        reply["video_ids"] = [job.id for job in made.jobs]
    return web.json_response(reply, headers=made.headers)


async def remix(request: web.Request) -> web.Response:
    made = await submission.remix(request, await find_job(request))
    return web.json_response(represent(request, made.jobs[0]), headers=made.headers)


async def unserved(request: web.Request) -> web.Response:
    """What OpenAI's API has beside these: a 404 that says so, since a bare path would be a 405."""
    raise ApiError(404, f"no model served here can do {request.path}", code="not_supported")


async def list_videos(request: web.Request) -> web.Response:
    """A page of jobs: ``limit`` (1-100), ``order`` (asc or desc by age), ``after`` (the last id seen)."""
    query = request.query
    limit = _limit(query.get("limit", str(DEFAULT_LIMIT)))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "order must be asc or desc")
    after = query.get("after")
    try:
        jobs, has_more = request.app[SERVICE].page(after, limit, order == "desc")
    except KeyError:
        raise invalid("after", f"after: there is no video {str(after)[:128]!r}") from None
    page = [represent(request, job) for job in jobs]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": has_more,
        }
    )


async def retrieve(request: web.Request) -> web.Response:
    """A failed job is a 200 too: clients take any other status for a failed poll, and give up."""
    return web.json_response(represent(request, await find_job(request)))


async def delete(request: web.Request) -> web.Response:
    job_id = _job_id(request)
    if not await request.app[SERVICE].delete(job_id):
        raise _no_such_video(job_id)
    return web.json_response({"id": job_id, "object": "video.deleted", "deleted": True})


async def find_job(request: web.Request) -> Job:
    """The job that the path names. Raises ApiError, 404."""
    job_id = _job_id(request)
    job = await request.app[SERVICE].find(job_id)
    if job is None:
        raise _no_such_video(job_id)
    return job


def base_url(request: web.Request) -> str | None:
    """Where this client reaches the server; None if neither an option nor the request says so."""
    public_url = request.app[OPTIONS].public_url
    if public_url is not None:
        return public_url.rstrip("/")
    # Not request.host: without the header that asks DNS for this machine's name, and blocks.
    host = request.headers.get("Host")
    return f"{request.scheme}://{host}" if host else None


def represent(request: web.Request, job: Job) -> dict[str, Any]:
    """The job as this client sees it."""
    return representation(job, content_url(request, job), request.app[SERVICE].retention_seconds)


def content_url(request: web.Request, job: Job) -> str | None:
    """The link to the file, for those without a key too; None where nothing says under which name."""
    base, signer = base_url(request), request.app[OPTIONS].signer
    if base is None:
        return None
    url = f"{base}/v1/videos/{job.id}/content"
    return url if signer is None else f"{url}?{signer.query(job.id, 'video')}"


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    raise invalid("limit", f"limit must be an integer from 1 to {MAX_LIMIT}")


def _job_id(request: web.Request) -> str:
    job_id = request.match_info["id"]
    if not _ID.fullmatch(job_id):
        raise _no_such_video(job_id)
    return job_id


def _no_such_video(job_id: str) -> ApiError:
    return ApiError(404, f"there is no video {job_id[:128]!r}", code="video_not_found", param="id")
