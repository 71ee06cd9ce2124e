"""Request bodies: JSON, multipart and urlencoded, all turned into one dict of raw values.

Forms carry only text, so their values stay strings here and are coerced later by the type of the field
they name. Nested values come as ``a[b]`` and ``a[]`` (OpenAI's SDKs) and become dicts and lists.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.options import HttpOptions

MAX_NAME = 128  # characters of a field's name
_NESTED_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,8})")  # a, a[], a[b], ... up to 8 levels
_TYPES = "application/json, multipart/form-data or application/x-www-form-urlencoded"


async def read_fields(request: web.Request, options: HttpOptions) -> dict[str, Any]:
    """The fields of the body by their top-level names.

    Raises:
        ApiError: 400 for a body that cannot be read or has a file in it, 408 for one that does not arrive
            in time, 413 for one that is too large, 415 for another content type.
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
        return nest(_text_parts(await request.post()))
    raise ApiError(415, f"content-type {kind} is not {_TYPES}", code="content_type")


def _text_parts(parts: Any) -> Iterable[tuple[str, str]]:
    files = [(name, part) for name, part in parts.items() if isinstance(part, web.FileField)]
    for _, part in files:
        part.file.close()
    if files:
        name = files[0][0]
        raise invalid(name, f"{name} is a file: no model served here takes reference media")
    for name, part in parts.items():
        yield name, part if isinstance(part, str) else bytes(part).decode()


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


def nest(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
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


def _put(fields: dict[str, Any], keys: list[str], name: str, value: str) -> None:
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
