"""``/v1/videos/{id}/content``: the media file, from the output store or from the decoder that holds it, and
the pictures made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import PurePosixPath

from aiohttp import web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.sending import LocalFile, RemoteFile
from orchestrator.http.service import OPTIONS, SERVICE, VideoService
from orchestrator.http.videos import find_job
from orchestrator.jobs import Job, Status
from orchestrator.previews import VARIANTS, Variant
from triptych_proto.control_pb2 import MediaFile

VIDEO = "video"


async def content(request: web.Request) -> web.StreamResponse:
    """The file or the range asked for. ``Accept`` is not looked at: OpenAI's SDK and AIPerf send others."""
    name = request.query.get("variant", VIDEO)
    if name != VIDEO and name not in VARIANTS:
        raise invalid("variant", f"variant must be one of {VIDEO}, {', '.join(VARIANTS)}")
    job = await find_job(request)
    if name == VIDEO:
        return await _elsewhere(request, job) or await send_video(request, job)
    return await _send_picture(request, job, VARIANTS[name])


async def _elsewhere(request: web.Request, job: Job) -> web.Response | None:
    """A redirect to the store that has the file. Links are for GET alone, and validators are our own."""
    if request.method != "GET" or request.if_none_match or request.headers.get("If-Range"):
        return None
    file = media_file(job)
    link = await request.app[SERVICE].content_link(job, _file_name(job, PurePosixPath(file.name).suffix))
    if link is None:
        return None
    return web.Response(status=307, headers={"Location": link, "Cache-Control": "no-store"})


async def send_video(
    request: web.Request, job: Job, extra_headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Raises ApiError: 404 for a job that is not over or whose file is gone, 416, 422 for a failed job, 503
    when the decoder or the store that has the file is away.
    """
    service, timeout = request.app[SERVICE], request.app[OPTIONS].download_timeout
    file = media_file(job)
    headers = _headers(job, file.content_type, PurePosixPath(file.name).suffix)
    headers.update(extra_headers or {})
    try:
        local = await asyncio.to_thread(_look, service, job)
    except OSError:
        message = f"the file of {job.id} is gone from the output store"
        raise ApiError(404, message, code="content_gone") from None
    if local is not None:
        return await local.send(request, headers, timeout)
    remote = RemoteFile(file.bytes, job.id, lambda start, length: service.read_content(job, start, length))
    return await remote.send(request, headers, timeout)


def _look(service: VideoService, job: Job) -> LocalFile | None:
    """None if no disk that is seen here has it."""
    path = service.content_path(job)
    return None if path is None else LocalFile.look(path)


async def media_bytes(request: web.Request, job: Job) -> bytes:
    """A completed job's whole file: for small ones. Raises ApiError: 404 or 503 when it is gone."""
    service, file = request.app[SERVICE], media_file(job)
    path = service.content_path(job)
    try:
        if path is not None:
            return await asyncio.to_thread(path.read_bytes)
        return b"".join([chunk async for chunk in service.read_content(job, 0, file.bytes)])
    except OSError:
        raise ApiError(404, f"the file of {job.id} is gone", code="content_gone") from None


async def _send_picture(request: web.Request, job: Job, variant: Variant) -> web.StreamResponse:
    media_file(job)
    path = await request.app[SERVICE].previews.path(job, variant)
    headers = _headers(job, variant.content_type, variant.suffix)
    try:
        picture = await asyncio.to_thread(LocalFile.look, path)
    except OSError:  # others have taken its place since
        retry = {"Retry-After": "1"}
        raise ApiError(503, f"the {variant.name} is gone again", code="busy", headers=retry) from None
    return await picture.send(request, headers, request.app[OPTIONS].download_timeout)


def media_file(job: Job) -> MediaFile:
    """Raises ApiError: 404 for a job that is not over, 422 for one that failed."""
    if job.status is Status.FAILED:
        reason = job.error.message if job.error else "no reason is known"
        raise ApiError(422, f"video {job.id} failed: {reason}", code="video_failed")
    if job.status is not Status.COMPLETED or job.file is None:
        raise ApiError(404, f"video {job.id} is {job.status.value}, not ready yet", code="video_not_ready")
    return job.file


def _headers(job: Job, content_type: str, suffix: str) -> dict[str, str]:
    return {
        "Content-Type": content_type,
        "Content-Disposition": f'attachment; filename="{_file_name(job, suffix)}"',
    }


def _file_name(job: Job, suffix: str) -> str:
    return f"{job.id}{suffix}"
