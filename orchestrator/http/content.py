"""``/v1/videos/{id}/content``: the media file, from the output store or from the decoder that holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.http.videos import find_job
from orchestrator.jobs import Job, Status
from triptych_proto.control_pb2 import MediaFile

T = TypeVar("T")

log = logging.getLogger(__name__)


async def content(request: web.Request) -> web.StreamResponse:
    """The file or the range asked for. ``Accept`` is not looked at: OpenAI's SDK and AIPerf send others."""
    if request.query.get("variant", "video") != "video":
        raise invalid("variant", "only variant=video is made by this server")
    job = find_job(request)
    file = _file(job)
    offset, length, status = _range(request, file.bytes)
    headers = {
        "Content-Type": file.content_type,
        "Content-Disposition": f'attachment; filename="{job.id}{PurePosixPath(file.name).suffix}"',
        "Accept-Ranges": "bytes",
    }
    service, timeout = request.app[SERVICE], request.app[OPTIONS].download_timeout
    path = service.content_path(job)
    if path is not None:
        if not await asyncio.to_thread(path.is_file):
            raise ApiError(404, f"the file of {job.id} is gone from the output store", code="content_gone")
        return _File(path, headers, timeout)
    if status == 206:
        headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{file.bytes}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = length
    if request.method == "HEAD":
        return response
    async with aclosing(service.read_content(job, offset, length)) as chunks:
        first = await anext(chunks, b"")  # before the headers, so that a failure can still be answered
        with suppress(ConnectionError):  # aiohttp sees for itself that the connection is gone
            await _send(request, _stream(request, response, first, chunks), timeout)
    return response


async def _stream(
    request: web.Request, response: web.StreamResponse, first: bytes, rest: AsyncGenerator[bytes, None]
) -> None:
    await response.prepare(request)
    await response.write(first)
    async for chunk in rest:
        await response.write(chunk)
    await response.write_eof()


class _File(web.FileResponse):
    """A FileResponse whose client cannot stop reading for ever."""

    def __init__(self, path: Path, headers: Mapping[str, str], timeout: float) -> None:
        super().__init__(path, headers=headers)
        self._timeout = timeout

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return await _send(request, super().prepare(request), self._timeout)


async def _send(request: web.BaseRequest, sending: Awaitable[T], timeout: float) -> T:
    """Once headers are out, only a cut connection can tell the client that something went wrong."""
    try:
        return await asyncio.wait_for(sending, timeout)
    except ConnectionError:
        raise
    except Exception as error:
        log.warning("sending %s broke off: %r", request.path, error)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"sending {request.path} broke off") from error


def _file(job: Job) -> MediaFile:
    if job.status is Status.FAILED:
        reason = job.error.message if job.error else "no reason is known"
        raise ApiError(422, f"video {job.id} failed: {reason}", code="video_failed")
    if job.status is not Status.COMPLETED or job.file is None:
        raise ApiError(404, f"video {job.id} is {job.status.value}, not ready yet", code="video_not_ready")
    return job.file


def _range(request: web.Request, size: int) -> tuple[int, int, int]:
    """Offset, length and status (200 or 206) of the one range that is asked for.

    Raises:
        ApiError: 416 with the size in ``Content-Range``.
    """
    if "Range" not in request.headers:
        return 0, size, 200
    try:
        wanted = request.http_range
    except ValueError:
        raise _unsatisfiable(size) from None
    start, stop, _ = wanted.indices(size)
    if start >= stop:
        raise _unsatisfiable(size)
    return start, stop - start, 206


def _unsatisfiable(size: int) -> ApiError:
    headers = {"Content-Range": f"bytes */{size}"}
    return ApiError(416, f"the range is not within the {size} bytes of the file", headers=headers)
