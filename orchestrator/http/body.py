"""Request bodies: JSON, multipart and urlencoded, all turned into one dict of raw values.

A body is read in pieces and never takes more memory than ``max_body_bytes``, whatever it claims to be. One
that is not small counts against the memory for reference images.

Forms carry only text, so their values stay strings here and are coerced later by the type of the field
they name. Nested values come as ``a[b]`` and ``a[]`` (OpenAI's SDKs) and become dicts and lists.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from aiohttp import BodyPartReader, web

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.options import HttpOptions
from orchestrator.reference_memory import Share

T = TypeVar("T")

SMALL_BYTES = 64 << 10  # of a body without images: free of charge, and done with in no time
MAX_NAME = 128  # characters of a field's name
_NESTED_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,8})")  # a, a[], a[b], ... up to 8 levels
IMAGE_HEAD_BYTES = 12  # by which images are known
_CHUNK_BYTES = 64 << 10
_TYPES = "application/json, multipart/form-data or application/x-www-form-urlencoded"


@dataclass(frozen=True)
class File:
    """A file in a form. The name it came with is of no use: nothing here is called by it."""

    data: bytes | None  # of a PNG, JPEG or WebP file; other files are let go, since no model takes one


async def read_fields(request: web.Request, options: HttpOptions, share: Share) -> dict[str, Any]:
    """The fields of the body by their top-level names. ``share`` grows with a body that is not small.

    Raises:
        ApiError: 400 for a body that cannot be read, 408 for one that does not arrive in time, 413 for one
            that is too large, 415 for another content type, 429 when there is no memory for it.
    """
    try:
        fields = await asyncio.wait_for(_parse(request, options, share), options.body_timeout)
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


async def off_loop(request: web.Request, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, on a thread where what the body brought is not small."""
    if request.content.total_bytes <= SMALL_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)


async def _parse(request: web.Request, options: HttpOptions, share: Share) -> dict[str, Any]:
    kind = request.content_type
    if kind == "application/json" or kind.endswith("+json"):
        return await off_loop(request, _json_object, await _whole(request, options, share))
    if kind == "application/x-www-form-urlencoded":
        body = await _whole(request, options, share)
        return await off_loop(request, _urlencoded, body, options.max_fields)
    if kind == "multipart/form-data":
        return nest([part async for part in _parts(request, options, share)])
    raise ApiError(415, f"content-type {kind} is not {_TYPES}", code="content_type")


async def _whole(request: web.Request, options: HttpOptions, share: Share) -> bytes:
    body = _Received(options.max_body_bytes, share)
    async for piece in request.content.iter_any():
        body.add(piece)
    return b"".join(body.pieces)


class _Received:
    """What has come of a body, by the size it has when it is not compressed any more."""

    def __init__(self, limit: int, share: Share) -> None:
        self.pieces: list[bytes] = []
        self._count = 0
        self._limit = limit
        self._share = share

    def count(self, nbytes: int) -> None:
        """Of what is let go. Raises HTTPRequestEntityTooLarge."""
        self._count += nbytes
        if self._count > self._limit:
            raise web.HTTPRequestEntityTooLarge(self._limit)

    def add(self, piece: bytes) -> None:
        """Of what is kept. Raises as above, and ApiError, 429."""
        self.count(len(piece))
        if self._count > SMALL_BYTES:
            self._share.grow(min(len(piece), self._count - SMALL_BYTES))
        self.pieces.append(piece)

    def take(self) -> bytes:
        """What was kept since the last time."""
        data = b"".join(self.pieces)
        self.pieces.clear()
        return data


def _urlencoded(body: bytes, max_fields: int) -> dict[str, Any]:
    text = body.decode()
    if text.lstrip().startswith("{"):  # curl -d without a header
        raise ApiError(
            415, "the body looks like JSON: send content-type application/json", code="content_type"
        )
    return nest(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=max_fields))


async def _parts(
    request: web.Request, options: HttpOptions, share: Share
) -> AsyncIterator[tuple[str, str | File]]:
    form = await request.multipart()
    received = _Received(options.max_body_bytes, share)
    count = 0
    while (part := await form.next()) is not None:
        count += 1
        if count > options.max_fields:
            raise ApiError(400, f"more than {options.max_fields} fields", code="invalid_body")
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise ValueError("a part has no name, or parts of its own")
        pieces = _pieces(part, request, options.max_body_bytes)
        if part.filename:
            yield part.name, File(await _image(pieces, received))
        else:
            async for piece in pieces:
                received.add(piece)
            yield part.name, received.take().decode(part.get_charset("utf-8"))


async def _image(pieces: AsyncIterator[bytes], received: _Received) -> bytes | None:
    """The file if it is an image; others are read to their ends without being kept."""
    head, kept = b"", False
    async for piece in pieces:
        if len(head) < IMAGE_HEAD_BYTES:
            piece = head = head + piece
            if len(head) < IMAGE_HEAD_BYTES:
                continue
            kept = image_type(head) is not None
        if kept:
            received.add(piece)
        else:
            received.count(len(piece))
    return received.take() if kept else None


async def _pieces(part: BodyPartReader, request: web.Request, limit: int) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        if request.content.total_bytes > limit:
            raise web.HTTPRequestEntityTooLarge(limit)
        async for piece in part.decode_iter(chunk):
            yield bytes(piece)


def image_type(data: bytes | bytearray) -> str | None:
    """The content type that the first bytes of a file speak of; None for no image that is taken."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if data[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


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
