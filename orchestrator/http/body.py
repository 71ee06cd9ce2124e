"""Request bodies: JSON, multipart and urlencoded, all turned into one dict of raw values.

A body is read in pieces and never takes more memory than ``max_body_bytes``, whatever it claims to be.

Forms carry only text, so their values stay strings here and are coerced later by the type of the field
they name. Nested values come as ``a[b]`` and ``a[]`` (OpenAI's SDKs) and become dicts and lists.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import BodyPartReader, web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.options import HttpOptions

MAX_NAME = 128  # characters of a field's name
_NESTED_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,8})")  # a, a[], a[b], ... up to 8 levels
_CHUNK_BYTES = 64 << 10
_TYPES = "application/json, multipart/form-data or application/x-www-form-urlencoded"


@dataclass(frozen=True)
class File:
    """A file in a form. Its bytes are counted and let go: no model served here takes one."""

    name: str
    content_type: str
    bytes: int


async def read_fields(request: web.Request, options: HttpOptions) -> dict[str, Any]:
    """The fields of the body by their top-level names.

    Raises:
        ApiError: 400 for a body that cannot be read, 408 for one that does not arrive in time, 413 for one
            that is too large, 415 for another content type.
    """
    try:
        fields = await asyncio.wait_for(_parse(request, options), options.body_timeout)
    except asyncio.TimeoutError:
        seconds = f"{options.body_timeout:g}"
        raise ApiError(408, f"the body did not arrive within {seconds} s", code="timeout") from None
    except (ApiError, web.HTTPException, ConnectionError):
        raise
    except Exception as error:
        # Parsers of aiohttp and of the standard library fail in many ways on bytes that make no sense.
        raise ApiError(
            400, f"the body is not valid {request.content_type}: {error}", code="invalid_body"
        ) from error
    if len(fields) > options.max_fields:
        raise ApiError(400, f"more than {options.max_fields} fields", code="invalid_body")
    return fields


async def _parse(request: web.Request, options: HttpOptions) -> dict[str, Any]:
    kind = request.content_type
    if kind == "application/json" or kind.endswith("+json"):
        return _json_object(await request.read())
    if kind == "application/x-www-form-urlencoded":
        text = (await request.read()).decode()
        if text.lstrip().startswith("{"):  # curl -d without a header
            raise ApiError(
                415, "the body looks like JSON: send content-type application/json", code="content_type"
            )
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=options.max_fields)
        return nest(pairs)
    if kind == "multipart/form-data":
        return nest([part async for part in _parts(request, options)])
    raise ApiError(415, f"content-type {kind} is not {_TYPES}", code="content_type")


async def _parts(request: web.Request, options: HttpOptions) -> AsyncIterator[tuple[str, str | File]]:
    form = await request.multipart()
    count = 0
    while (part := await form.next()) is not None:
        count += 1
        if count > options.max_fields:
            raise ApiError(400, f"more than {options.max_fields} fields", code="invalid_body")
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise ValueError("a part has no name, or parts of its own")
        pieces = _pieces(part, request, options.max_body_bytes)
        if part.filename:
            size = sum([len(piece) async for piece in pieces])
            kind = part.headers.get("Content-Type", "application/octet-stream")
            yield part.name, File(part.filename, kind, size)
        else:
            data = b"".join([piece async for piece in pieces])
            yield part.name, data.decode(part.get_charset("utf-8"))


async def _pieces(part: BodyPartReader, request: web.Request, limit: int) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        if request.content.total_bytes > limit:
            raise web.HTTPRequestEntityTooLarge(limit)
        async for piece in part.decode_iter(chunk):
            yield piece


def _json_object(body: bytes) -> dict[str, Any]:
    value = parse_json(body.decode())
    if not isinstance(value, dict):
        raise ApiError(400, "the body is JSON, but not an object", code="invalid_body")
    return value


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN or Infinity, no repeated names.

    Raises:
        ValueError: for anything else, too deeply nested JSON included.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is repeated in one object")
    return fields


def nest(pairs: Iterable[tuple[str, str | File]]) -> dict[str, Any]:
    """``[("a[b]", "1"), ("c[]", "2"), ("c[]", "3")]`` as ``{"a": {"b": "1"}, "c": ["2", "3"]}``.

    Raises:
        ApiError: 400 for a malformed, repeated or contradicting name.
    """
    fields: dict[str, Any] = {}
    for name, value in pairs:
        match = _NESTED_NAME.fullmatch(name) if len(name) <= MAX_NAME else None
        if match is None:
            raise invalid(
                name[:MAX_NAME], f"{name[:MAX_NAME]!r} is not a field name of the form a, a[b] or a[]"
            )
        keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        if "" in keys[:-1]:
            raise invalid(keys[0], f"{name!r}: only the last part of a name can be []")
        _put(fields, keys, name, value)
    return fields


def _put(fields: dict[str, Any], keys: list[str], name: str, value: str | File) -> None:
    is_list = keys[-1] == ""
    *parents, last = keys[:-1] if is_list else keys
    node: Any = fields
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise invalid(keys[0], f"{name!r} contradicts another field of that name")
    if is_list:
        items = node.setdefault(last, [])
        if not isinstance(items, list):
            raise invalid(keys[0], f"{name!r} contradicts another field of that name")
        items.append(value)
    elif last in node:
        raise invalid(keys[0], f"{name!r} is given more than once")
    else:
        node[last] = value
