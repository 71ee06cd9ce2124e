"""From a request's body to a stored job: the one way that all requests for videos take."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

from orchestrator.http import idempotency
from orchestrator.http.auth import caller
from orchestrator.http.body import read_fields
from orchestrator.http.errors import ApiError, invalid, request_id
from orchestrator.http.fields import Given
from orchestrator.http.health import not_ready
from orchestrator.http.options import HttpOptions
from orchestrator.http.request import parse_request
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.http.video_fields import REMIX, VIDEO
from orchestrator.jobs import Job, Once, Status

log = logging.getLogger(__name__)

IGNORED_HEADER = "X-Ignored-Fields"
MAX_IGNORED = 16  # shown


@dataclass(frozen=True)
class Submission:
    """A job and what its client should know of how it came about."""

    job: Job
    keyed: bool  # the client can send the request again
    ignored: tuple[str, ...]

    @property
    def headers(self) -> dict[str, str]:
        names = ", ".join(quote(name, safe="", errors="replace")[:64] for name in self.ignored[:MAX_IGNORED])
        return {IGNORED_HEADER: names} if names else {}


async def submit(request: web.Request, *, max_seconds: float | None = None) -> Submission:
    """A new video, to be finished within ``max_seconds`` if that is less than what the request allows.

    Raises ApiError: 400, 404 or 409 for what is asked, 408, 413 or 415 for the body, 429 or 503 when it
    cannot be taken now.
    """
    given = await _given(request)
    once = idempotency.once(request, given.values)
    return await _submit(request, given, once, given.values, None, max_seconds)


async def remix(request: web.Request, source: Job) -> Submission:
    """The same video from another prompt; with the same noise, unless a seed is given. Raises as above."""
    given = await _given(request)
    for name in given.values:
        if name not in REMIX:
            raise invalid(name, f"{name} of a remix is that of its source; {', '.join(REMIX)} can be given")
    once = idempotency.once(request, {"remix": source.id, **given.values})
    _require_completed(source)
    return await _submit(request, given, once, {**_fields(source), **given.values}, source.id, None)


async def _given(request: web.Request) -> Given:
    options = request.app[OPTIONS]
    fields = await read_fields(request, options)
    return VIDEO.parse(fields, ignore_unknown=options.ignore_unknown_fields)


async def _submit(
    request: web.Request,
    given: Given,
    once: Once | None,
    values: Mapping[str, Any],
    source: str | None,
    max_seconds: float | None,
) -> Submission:
    service, options = request.app[SERVICE], request.app[OPTIONS]
    # Before anything is checked: what was taken once stays taken, whatever has changed since.
    job = None if once is None else await service.submitted(once.key)
    if job is None:
        models = service.models()
        if not models:
            raise not_ready("no role has introduced itself yet, so no model is known")
        wanted = parse_request(
            values,
            models,
            max_prompt_chars=options.max_prompt_chars,
            max_timeout=options.max_timeout_seconds,
        )
        limits = [seconds for seconds in (wanted.timeout, max_seconds) if seconds is not None]
        job = await service.submit(
            wanted.model.name,
            wanted.generation,
            priority=wanted.priority,
            timeout=min(limits, default=None),
            remixed_from=source,
            webhook_url=_webhook_url(values, options),
            once=once,
        )
        if who := caller(request):
            log.info("job=%s request=%s key=%s", job.id, request_id(request), who)
    if once is not None:
        idempotency.same(job, once)
    return Submission(job, once is not None, given.ignored)


def _webhook_url(values: Mapping[str, Any], options: HttpOptions) -> str | None:
    if "webhook_url" not in values:
        return None
    if options.webhook_targets is None:
        message = "webhook_url is not supported: this server was started without --webhook-allow"
        raise ApiError(400, message, code="unsupported_field", param="webhook_url")
    try:
        return str(options.webhook_targets.check(values["webhook_url"]))
    except ValueError as error:
        raise invalid("webhook_url", f"webhook_url: {error}") from None


def _fields(job: Job) -> dict[str, Any]:
    """The fields of a request for just that video."""
    generation = job.generation
    names = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed")
    fields = {name: getattr(generation, name) for name in names}
    return {**fields, "model": job.model, "negative_prompt": generation.negative_prompt}


def _require_completed(job: Job) -> None:
    if job.status is Status.COMPLETED:
        return
    raise ApiError(
        409,
        f"video {job.id} is {job.status.value}; only a completed one can be remixed",
        code="video_failed" if job.status is Status.FAILED else "video_not_ready",
        headers={"x-should-retry": "false"},
    )
