"""``/v1/images``: OpenAI's requests for images. Each image is a job, and the client waits for all of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from orchestrator.http import submission, waiting
from orchestrator.http.content import media_bytes, media_file
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.fields import (
    MAX_UINT32,
    MAX_UINT64,
    Field,
    Fields,
    Unsupported,
    boolean,
    choice,
    integer,
    number,
    size,
    text,
)
from orchestrator.http.references import references
from orchestrator.http.request import VideoRequest, checked_prompt, choose_model, makes_images
from orchestrator.http.service import OPTIONS, SERVICE
from orchestrator.http.submission import Submission
from orchestrator.http.video_fields import COUNT
from orchestrator.http.video_fields import OPTIONS as MODEL_OPTIONS
from orchestrator.http.videos import content_url
from orchestrator.jobs import Job, Status

MAX_REPLY_BYTES = 256 << 20  # of files in one reply; more are to be had by their URLs


def _size(name: str, value: object) -> tuple[int, int] | None:
    return None if value == "auto" else size(name, value)


_COMMON = (
    Field("prompt", text),
    Field("model", text),
    COUNT[0],
    Field("size", _size),
    Field("quality", choice("auto", "standard", "hd", "low", "medium", "high")),
    Field("response_format", choice("url", "b64_json")),
    Field("output_format", choice("png", "jpeg", "webp")),
    Field("output_compression", integer, 0, 100),
    Field("background", choice("auto", "transparent", "opaque")),
    Field("stream", boolean),
    Field("partial_images", integer, 0, 3),
    Field("user", text),
    Field("negative_prompt", text),
    Field("num_inference_steps", integer, 1, MAX_UINT32),
    Field("guidance_scale", number, 0, 100),
    *MODEL_OPTIONS,
    Field("seed", integer, 0, MAX_UINT64),
    Field("priority", integer, -10, 10),
    Field("timeout", number, 1, 86400),
)
GENERATION = Fields(
    (*_COMMON, Field("moderation", choice("auto", "low")), Field("style", choice("vivid", "natural")))
)
EDIT = Fields(
    (*_COMMON, Field("image", references), Field("input_fidelity", choice("low", "high"))),
    (Unsupported("mask", "no model served here takes a mask"),),
)


async def generate(request: web.Request) -> web.Response:
    return await _images(request, GENERATION)


async def edit(request: web.Request) -> web.Response:
    return await _images(request, EDIT)


async def _images(request: web.Request, fields: Fields) -> web.Response:
    """Raises ApiError: as for a video; then 400 when the request's own fault shows only while it is worked
    on, 422 when a job fails, 504 when it takes too long. None of these three is worth an automatic retry.
    """
    seconds = request.app[OPTIONS].sync_timeout
    with request.app[SERVICE].references.share() as share:
        given = await submission.read(request, fields, share)
        values = given.values
        checked_prompt(values, request.app[OPTIONS].max_prompt_chars)
        if fields is EDIT and not values.get("image"):
            raise invalid("image", "image is missing")
        asked = {"path": request.path, **values}

        async def wanted() -> VideoRequest:
            return _wanted(request, values)

        made = await submission.make(request, given, share, asked, wanted, max_seconds=seconds)
    return await _reply(request, values, made, seconds)


def _wanted(request: web.Request, values: Mapping[str, Any]) -> VideoRequest:
    """Raises ApiError: 404 for an unknown model, 400 for one that makes videos, and for other fields."""
    model = choose_model(values, submission.served(request))
    if not makes_images(model):
        message = f"model {model.name} makes videos, at /v1/videos, and no images"
        raise ApiError(400, message, code="model_makes_videos", param="model")
    for name, asked in (("stream", True), ("background", "transparent")):
        if values.get(name) == asked:
            reasons = {
                "stream": "images are sent when they are finished",
                "background": "the models served here make opaque pictures",
            }
            raise _unsupported(name, reasons[name])
    if values.get("partial_images"):
        raise _unsupported("partial_images", "images are sent when they are finished")
    named = {name: value for name, value in values.items() if not (name == "size" and value is None)}
    return submission.wanted_of(request, {**named, "model": model.name})


async def _reply(
    request: web.Request, values: Mapping[str, Any], made: Submission, seconds: float
) -> web.Response:
    headers = {"X-Image-Ids": ", ".join(job.id for job in made.jobs), **made.headers}
    try:
        jobs = await waiting.ends(request, made, seconds)
        for job in jobs:
            _require_completed(job)
        by_url = values.get("response_format") == "url"
        data = [_link(request, job) for job in jobs] if by_url else await _files(request, jobs)
    except ApiError as error:
        error.headers.update(headers)
        error.headers["x-should-retry"] = "false"
        raise
    file = media_file(jobs[0])
    reply = {
        "created": int(jobs[0].completed_at or jobs[0].created_at),
        "data": data,
        "output_format": file.content_type.rpartition("/")[2],
        "size": f"{file.width}x{file.height}",
        "background": "opaque",
    }
    return web.json_response(reply, headers=headers)


def _require_completed(job: Job) -> None:
    if job.status is Status.FAILED and job.error is not None and job.error.code == "invalid_request":
        raise ApiError(400, job.error.message, code="invalid_value")
    media_file(job)


def _link(request: web.Request, job: Job) -> dict[str, str]:
    url = content_url(request, job)
    if url is None:
        raise invalid("response_format", "response_format url needs a Host header, or --public-url here")
    return {"url": url}


async def _files(request: web.Request, jobs: Sequence[Job]) -> list[dict[str, str]]:
    nbytes = sum(media_file(job).bytes for job in jobs)
    if nbytes > MAX_REPLY_BYTES:
        raise invalid(
            "response_format", f"the images have {nbytes} bytes together: ask for response_format url"
        )
    return [{"b64_json": base64.b64encode(await media_bytes(request, job)).decode()} for job in jobs]


def _unsupported(name: str, reason: str) -> ApiError:
    return ApiError(400, f"{name} is not supported: {reason}", code="unsupported_field", param=name)
