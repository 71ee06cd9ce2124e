"""``/v1/images``: OpenAI's requests for images, checked against the models that are served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from aiohttp import web

from orchestrator.http.body import File, read_fields
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.fields import (
    MAX_UINT32,
    MAX_UINT64,
    Field,
    Fields,
    boolean,
    choice,
    integer,
    number,
    size,
    text,
)
from orchestrator.http.health import not_ready
from orchestrator.http.request import checked_prompt, find_model
from orchestrator.http.service import OPTIONS, SERVICE
from triptych_proto.control_pb2 import Model

MAX_IMAGES = 16
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")


def _size(name: str, value: object) -> tuple[int, int] | None:
    return None if value == "auto" else size(name, value)


def _files(name: str, value: object) -> list[File]:
    """One or several files of a form, each an image."""
    files = value if isinstance(value, list) else [value]
    if not 1 <= len(files) <= MAX_IMAGES:
        raise invalid(name, f"{name} must be 1 to {MAX_IMAGES} files, not {len(files)}")
    return [_image(name, file) for file in files]


def _image(name: str, file: object) -> File:
    if not isinstance(file, File):
        raise invalid(name, f"{name} must be a file of a multipart form")
    if file.content_type not in IMAGE_TYPES:
        raise invalid(name, f"{name} must be {', '.join(IMAGE_TYPES)}, not {file.content_type[:64]!r}")
    return file


_COMMON = (
    Field("prompt", text),
    Field("model", text),
    Field("n", integer, 1, 10),
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
    Field("seed", integer, 0, MAX_UINT64),
)
GENERATION = Fields(
    (*_COMMON, Field("moderation", choice("auto", "low")), Field("style", choice("vivid", "natural")))
)
EDIT = Fields(
    (*_COMMON, Field("image", _files), Field("mask", _files), Field("input_fidelity", choice("low", "high")))
)


async def generate(request: web.Request) -> web.Response:
    _refuse(await _given(request, GENERATION), _models(request))


async def edit(request: web.Request) -> web.Response:
    given = await _given(request, EDIT)
    if "image" not in given:
        raise invalid("image", "image is missing")
    _refuse(given, _models(request))


async def _given(request: web.Request, fields: Fields) -> Mapping[str, Any]:
    options = request.app[OPTIONS]
    raw = await read_fields(request, options)
    given = fields.parse(raw, ignore_unknown=options.ignore_unknown_fields).values
    checked_prompt(given, options.max_prompt_chars)
    return given


def _models(request: web.Request) -> Sequence[Model]:
    models = request.app[SERVICE].models()
    if not models:
        raise not_ready("no role has introduced itself yet, so no model is known")
    return models


def _refuse(given: Mapping[str, Any], models: Sequence[Model]) -> NoReturn:
    """Every family served makes videos. Raises ApiError: 404 for an unknown model, else 400."""
    if "model" in given:
        models = [find_model(given["model"], models)]
    served = ", ".join(model.name for model in models)
    message = f"no model served here makes images: {served} makes videos, at /v1/videos"
    raise ApiError(400, message, code="model_makes_videos", param="model")
