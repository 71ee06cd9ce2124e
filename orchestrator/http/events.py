"""``/v1/videos/{id}/events``: server-sent events, one for each change of a job, until it is over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web

from orchestrator.http.connections import cut_off
from orchestrator.http.errors import ApiError
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.http.videos import find_job, represent
from orchestrator.jobs import Job

LOOK_SECONDS = 1.0  # between two looks at whether the client is still there
RETRY_MS = 2000  # after which a browser connects again
END = "end"  # the id of the last event: who has had it need not connect again


class Streams:
    """The streams that are open. Closing them lets clients come back to another life of this server."""

    def __init__(self, limit: int) -> None:
        self.closing = False
        self._limit = limit
        self._open: set[asyncio.Event] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(self, wake: asyncio.Event) -> Iterator[None]:
        """``wake`` is set when the server stops. Raises ApiError: 429."""
        if len(self._open) >= self._limit:
            message = f"{self._limit} streams of events are open already; poll the video instead"
            raise ApiError(429, message, code="too_many_streams", headers={"Retry-After": "5"})
        self._open.add(wake)
        try:
            yield
        finally:
            self._open.discard(wake)

    async def close(self, app: web.Application) -> None:
        self.closing = True
        for wake in self._open:
            wake.set()


STREAMS = web.AppKey("streams", Streams)


async def events(request: web.Request) -> web.StreamResponse:
    """The first event is the state as it is, so nothing has to be repeated for who comes back.

    Raises ApiError: 404 for an unknown job, 429 when too many streams are open.
    """
    job = await find_job(request)
    if request.headers.get("Last-Event-ID") == END:
        return web.Response(status=204)  # this, and nothing else, stops a browser from asking again
    streams = request.app[STREAMS]
    headers = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # or nginx keeps events until it has more
    }
    response = web.StreamResponse(headers=headers)
    with request.app[SERVICE].watch(job.id) as changed, streams.opened(changed):
        if request.method == "GET":
            with suppress(ConnectionError):  # the client has left
                await response.prepare(request)
                await _send(request, response, f"retry: {RETRY_MS}\n\n")
                await _follow(request, response, job.id, changed)
    return response


async def _follow(
    request: web.Request, response: web.StreamResponse, job_id: str, changed: asyncio.Event
) -> None:
    number, shown = 0, ""
    while not request.app[STREAMS].closing:
        changed.clear()
        job = await request.app[SERVICE].find(job_id)
        kind, data = _event(request, job_id, job)
        over = job is None or job.status.final
        if data != shown:
            number, shown = number + 1, data
            name = END if over else str(number)
            await _send(request, response, f"id: {name}\nevent: {kind}\ndata: {data}\n\n")
        if over:
            return
        while not await _happens(request, changed):
            await _send(request, response, ": still here\n\n")


async def _happens(request: web.Request, changed: asyncio.Event) -> bool:
    """False when a heartbeat is due. Raises ConnectionResetError when the client has left."""
    due = time.monotonic() + request.app[OPTIONS].heartbeat_seconds
    while (left := due - time.monotonic()) > 0:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(changed.wait(), min(left, LOOK_SECONDS))
            return True
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has left")
    return False


async def _send(request: web.Request, response: web.StreamResponse, text: str) -> None:
    """A client that does not read is cut off; until then it misses what is no longer so."""
    try:
        await asyncio.wait_for(response.write(text.encode()), request.app[OPTIONS].send_timeout)
    except asyncio.TimeoutError:
        cut_off(request.transport)
        raise ConnectionResetError("the client does not read") from None


def _event(request: web.Request, job_id: str, job: Job | None) -> tuple[str, str]:
    """Its kind and its data. While a job runs its events are short; the last one has all of the video."""
    if job is None:
        return "deleted", json.dumps({"id": job_id, "object": "video.deleted", "deleted": True})
    if job.status.final:
        return job.status.value, json.dumps(represent(request, job))
    pace = job.pace
    progress: dict[str, Any] = {
        "id": job.id,
        "object": "video.progress",
        "status": job.status.value,
        "progress": job.progress,
        "stage": pace and pace.stage,
        "step": pace and pace.step,
        "total_steps": pace and pace.steps,
        "steps_per_second": pace and pace.steps_per_second,
        "seconds_left": pace and pace.seconds_left,
    }
    return "progress", json.dumps(progress)
