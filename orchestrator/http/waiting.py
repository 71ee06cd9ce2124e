"""Waits with a client for the ends of its jobs: a client that leaves takes them with it."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from orchestrator.http.errors import ApiError
from orchestrator.http.service import SERVICE
from orchestrator.http.submission import Submission
from orchestrator.jobs import Job, Status

LOOK_SECONDS = 0.25  # between two looks at whether the client is still there
GRACE_SECONDS = 10.0  # after which a job should have failed, for one that is not seen to


async def ends(request: web.Request, made: Submission, seconds: float) -> list[Job]:
    """The jobs as they ended, all of them, or up to the first that was not completed: then there is no use in
    the others. Those are deleted, and so are all when the client leaves, unless it can come back with its
    idempotency key.

    Raises ApiError: 404 when one was deleted, 504 when one is not finished within ``seconds``.
    """
    service = request.app[SERVICE]
    over = [asyncio.ensure_future(service.finished(job.id)) for job in made.jobs]
    latest = time.monotonic() + seconds + GRACE_SECONDS
    in_vain = False
    try:
        while not in_vain and not all(end.done() for end in over):
            if time.monotonic() >= latest or _left(request):
                break
            running = [end for end in over if not end.done()]
            await asyncio.wait(running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            in_vain = any(not _completed(end) for end in over if end.done())
    finally:  # a server may cancel the handlers of clients that left, or of all when it stops
        ended = [(job.id, end.result()) for job, end in zip(made.jobs, over, strict=True) if end.done()]
        unfinished = [job.id for job, end in zip(made.jobs, over, strict=True) if not end.done()]
        for end in over:
            end.cancel()
        if (in_vain or _left(request)) and not made.keyed:
            for job_id in unfinished:
                await service.delete(job_id)
    if unfinished and _left(request):
        raise ConnectionResetError("the client has left")
    jobs: list[Job] = []
    for job_id, job in ended:
        jobs.append(_job(job_id, job))
        if jobs[-1].status is not Status.COMPLETED:
            return jobs
    if unfinished:
        raise _late(unfinished[0])
    return jobs


def _completed(end: asyncio.Future[Job | None]) -> bool:
    job = end.result()
    return job is not None and job.status is Status.COMPLETED


def _job(job_id: str, job: Job | None) -> Job:
    if job is None:
        raise ApiError(404, f"video {job_id} was deleted", code="video_not_found", param="id")
    if job.error is not None and job.error.code == "timeout":
        raise _late(job_id)
    return job


def _late(job_id: str) -> ApiError:
    return ApiError(504, f"video {job_id} is not finished within its time", code="timeout")


def _left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
