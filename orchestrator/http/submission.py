"""From a request's body to stored jobs: the one way that all requests for videos and images take."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from aiohttp import web

from orchestrator.http import idempotency, several
from orchestrator.http.auth import caller
from orchestrator.http.body import off_loop, read_fields
from orchestrator.http.errors import ApiError, invalid, request_id
from orchestrator.http.fields import Fields, Given
from orchestrator.http.health import not_ready
from orchestrator.http.options import HttpOptions
from orchestrator.http.reference_urls import ReferenceFetcher
from orchestrator.http.references import MAX_BYTES, Link
from orchestrator.http.request import VideoRequest, parse_request
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.http.video_fields import OPTIONS as MODEL_OPTIONS
from orchestrator.http.video_fields import REMIX, VIDEO
from orchestrator.jobs import Job, Once, Status
from orchestrator.reference_memory import Share
from triptych_proto.control_pb2 import Model

log = logging.getLogger(__name__)

FETCHER = web.AppKey("reference_fetcher", ReferenceFetcher)
IGNORED_HEADER = "X-Ignored-Fields"
MAX_IGNORED = 16  # shown


@dataclass(frozen=True)
class Submission:
    """The jobs of a request and what its client should know of how they came about."""

    jobs: tuple[Job, ...]  # alike but for their seeds
    keyed: bool  # the client can send the request again
    ignored: tuple[str, ...]

    @property
    def headers(self) -> dict[str, str]:
        names = ", ".join(quote(name, safe="", errors="replace")[:64] for name in self.ignored[:MAX_IGNORED])
        return {IGNORED_HEADER: names} if names else {}


async def submit(
    request: web.Request, *, max_seconds: float | None = None, single: bool = False
) -> Submission:
    """New videos, to be finished within ``max_seconds`` if that is less than what the request allows;
    ``single``: just one.

    Raises ApiError: 400, 404 or 409 for what is asked, 408, 413 or 415 for the body, 429 or 503 when it
    cannot be taken now.
    """
    with request.app[SERVICE].references.share() as share:
        given = await read(request, VIDEO, share)
        if single and several.count(given.values) > 1:
            raise invalid("n", "n must be 1 here, where the reply is a file")

        async def wanted() -> VideoRequest:
            return wanted_of(request, given.values)

        return await make(request, given, share, given.values, wanted, max_seconds=max_seconds)


async def remix(request: web.Request, source: Job) -> Submission:
    """The same video from another prompt; with the same noise, unless a seed is given. Raises as above."""
    service = request.app[SERVICE]
    with service.references.share() as share:
        given = await read(request, VIDEO, share)
        for name in given.values:
            if name not in REMIX:
                message = f"{name} of a remix is that of its source; {', '.join(REMIX)} can be given"
                raise invalid(name, message)

        async def wanted() -> VideoRequest:
            _require_completed(source)
            images = await service.images(source.id)
            return wanted_of(request, {**_fields(source, images), **given.values})

        asked = {"remix": source.id, **given.values}
        return await make(request, given, share, asked, wanted, source=source.id)


async def make(
    request: web.Request,
    given: Given,
    share: Share,
    asked: Mapping[str, Any],
    wanted: Callable[[], Awaitable[VideoRequest]],
    *,
    max_seconds: float | None = None,
    source: str | None = None,
) -> Submission:
    """As many jobs as ``given`` says. ``asked`` is what makes a request equal to an earlier one; what it
    ``wanted`` is looked at only if there is none.
    """
    images: tuple[bytes, ...] = ()
    webhook_url = None

    async def prepare() -> VideoRequest:
        nonlocal images, webhook_url
        one = await wanted()
        images = await images_of(request, one, share)
        webhook_url = _webhook_url(given.values, request.app[OPTIONS])
        share.give_back()  # the jobs take up the same at once
        return one

    async def keep(one: VideoRequest, once: Once | None) -> Job:
        return await store(
            request, one, images, once, max_seconds=max_seconds, source=source, webhook_url=webhook_url
        )

    jobs = await several.make(request, asked, several.count(given.values), prepare, keep)
    return Submission(jobs, idempotency.HEADER in request.headers, given.ignored)


# ---- the steps


async def read(request: web.Request, fields: Fields, share: Share) -> Given:
    """What the body gives; ``share`` grows with it."""
    options = request.app[OPTIONS]
    raw = await read_fields(request, options, share)
    return await off_loop(request, _parse, fields, raw, options.ignore_unknown_fields)


def _parse(fields: Fields, raw: Mapping[str, object], ignore_unknown: bool) -> Given:
    given = fields.parse(raw, ignore_unknown=ignore_unknown)
    # A field of images that has none asks for nothing.
    return replace(given, values={name: value for name, value in given.values.items() if value != ()})


def served(request: web.Request) -> Sequence[Model]:
    models = request.app[SERVICE].models()
    if not models:
        raise not_ready("no role has introduced itself yet, so no model is known")
    return models


def wanted_of(request: web.Request, values: Mapping[str, Any]) -> VideoRequest:
    options = request.app[OPTIONS]
    return parse_request(
        values,
        served(request),
        max_prompt_chars=options.max_prompt_chars,
        max_timeout=options.max_timeout_seconds,
    )


async def images_of(request: web.Request, wanted: VideoRequest, share: Share) -> tuple[bytes, ...]:
    """The reference images, fetched where need be; ``share`` grows with those."""
    name, limit = wanted.references_field, min(request.app[OPTIONS].max_body_bytes, MAX_BYTES)
    left = limit - sum(len(image) for image in wanted.references if isinstance(image, bytes))
    if left < 0:
        message = f"{name}: the images have {limit - left} bytes together; at most {limit} are taken"
        raise ApiError(413, message, code="body_too_large", param=name)
    images: list[bytes] = []
    for image in wanted.references:
        if isinstance(image, Link):
            image = await request.app[FETCHER].fetch(name, image.url, left, share)
            left -= len(image)
        images.append(image)
    return tuple(images)


async def store(
    request: web.Request,
    wanted: VideoRequest,
    images: Sequence[bytes],
    once: Once | None,
    *,
    max_seconds: float | None = None,
    source: str | None = None,
    webhook_url: str | None = None,
) -> Job:
    limits = [seconds for seconds in (wanted.timeout, max_seconds) if seconds is not None]
    job = await request.app[SERVICE].submit(
        wanted.model.name,
        wanted.generation,
        priority=wanted.priority,
        timeout=min(limits, default=None),
        remixed_from=source,
        webhook_url=webhook_url,
        once=once,
        images=images,
    )
    if who := caller(request):
        log.info("job=%s request=%s key=%s", job.id, request_id(request), who)
    return job if once is None else idempotency.same(job, once)


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


def _fields(job: Job, images: tuple[bytes, ...]) -> dict[str, Any]:
    """The fields of a request for just that video."""
    generation = job.generation
    names = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed")
    options = [field.name for field in MODEL_OPTIONS if generation.HasField(field.name)]  # type: ignore[arg-type]
    fields = {name: getattr(generation, name) for name in (*names, *options)}
    if generation.format:
        fields["output_format"] = generation.format
    if generation.quality:
        fields["output_compression"] = generation.quality
    if images:
        fields["input_reference"] = images
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
