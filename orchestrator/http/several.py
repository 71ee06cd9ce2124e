"""Jobs of one request that are alike but for their seeds: the images or videos that it asks several of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from orchestrator.http import idempotency
from orchestrator.http.body import off_loop
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.fields import MAX_UINT64
from orchestrator.http.request import VideoRequest
from orchestrator.http.service import SERVICE
from orchestrator.http.video_fields import COUNT
from orchestrator.jobs import Job, Once


def count(values: Mapping[str, Any]) -> int:
    """How many are asked for. Raises ApiError: 400."""
    names = [field.name for field in COUNT]
    given = {values[name] for name in names if name in values}
    if len(given) > 1:
        raise invalid(names[1], f"{' and '.join(names)} say different numbers")
    return given.pop() if given else 1


async def make(
    request: web.Request,
    asked: Mapping[str, Any],
    number: int,
    prepare: Callable[[], Awaitable[VideoRequest]],
    store: Callable[[VideoRequest, Once | None], Awaitable[Job]],
) -> tuple[Job, ...]:
    """The jobs of a request for ``asked``, stored, or those that an equal request with its key has made, in
    the order of their seeds.

    ``prepare`` is called when one is missing, before anything is stored. When one cannot be stored, those
    before it are deleted, unless the client can ask for them again. Raises ApiError, as these two do.
    """
    keys = [await off_loop(request, idempotency.once, request, asked, part) for part in range(number)]
    # Before anything is checked: what was taken once stays taken, whatever has changed since.
    earlier = [await _earlier(request, once) for once in keys]
    wanted = None if all(earlier) else await prepare()
    jobs: list[Job] = []
    try:
        for part, (once, job) in enumerate(zip(keys, earlier, strict=True)):
            if job is None and wanted is not None:
                job = await store(_numbered(wanted, part), once)
            assert job is not None
            jobs.append(job)
    except ApiError:
        for once, job in zip(keys, jobs, strict=False):
            if once is None:
                await request.app[SERVICE].delete(job.id)
        raise
    return tuple(jobs)


async def _earlier(request: web.Request, once: Once | None) -> Job | None:
    """The job that an equal request has made. Raises ApiError, 409, where the key is another request's."""
    job = None if once is None else await request.app[SERVICE].submitted(once.key)
    return job if job is None or once is None else idempotency.same(job, once)


def _numbered(wanted: VideoRequest, part: int) -> VideoRequest:
    """The one of them that has the seed ``part`` higher."""
    generation = type(wanted.generation)()
    generation.CopyFrom(wanted.generation)
    generation.seed = (generation.seed + part) % (MAX_UINT64 + 1)
    return replace(wanted, generation=generation)
