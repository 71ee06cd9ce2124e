"""Reference images in requests: files, data URLs, and links to images that are fetched later.

The orchestrator looks at the first bytes of an image and no further: decoding is for the encoder.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from orchestrator.http.body import File, image_type, parse_json
from orchestrator.http.errors import ApiError, invalid

MAX_REFERENCES = 16  # in one request
MAX_BYTES = 48 << 20  # of all images of a request: roles take no larger task
TYPES = ("image/png", "image/jpeg", "image/webp")
# All say the same; a request has one of them, as its client's own server calls it.
NAMES = ("input_reference", "input_references", "image", "image_reference", "reference_url")
FORMS = (
    "a file of a multipart form, a data URL, an http(s) URL, or an object with one of these URLs as image_url"
)

_DATA_URL = re.compile(r"data:([^,;]{0,64})((?:;[^,;]{1,64}){0,4}),", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """An image that is elsewhere."""

    url: str


Reference: TypeAlias = bytes | Link


def references(name: str, value: object) -> tuple[Reference, ...]:
    """One or several, of whatever form; none for a value that asks for nothing. Raises ApiError, 400."""
    items = value if isinstance(value, list) else [value]
    found = tuple(_reference(name, item) for item in items if not _nothing(item))
    if len(found) > MAX_REFERENCES:
        raise invalid(name, f"{name} has {len(found)} images; at most {MAX_REFERENCES} are taken")
    return found


def _nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str) and value in ("", "false"))


def _reference(name: str, value: object) -> Reference:
    if isinstance(value, File):
        if value.data is None:
            raise invalid(name, f"{name} is not a PNG, JPEG or WebP file")
        return value.data
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            value = _members(name, text)
        elif text[:5].lower() == "data:":
            return _inline(name, text)
        elif re.match(r"https?://", text, re.IGNORECASE):
            return Link(text)
    if isinstance(value, Mapping):
        return _object(name, value)
    raise invalid(name, f"{name} must be {FORMS}")


def _members(name: str, text: str) -> Mapping[str, Any]:
    try:
        value = parse_json(text)
    except ValueError:
        raise invalid(name, f"{name} is neither JSON nor a URL; expected {FORMS}") from None
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be {FORMS}")
    return value


def _object(name: str, value: Mapping[str, Any]) -> Reference:
    """``{"image_url": URL}``, also with ``{"url": URL}`` in the place of the URL, as in OpenAI's chats."""
    if value.get("file_id") is not None:
        message = f"{name}: file_id is not supported: this server keeps no files of clients"
        raise ApiError(400, message, code="unsupported_field", param=name)
    url = value.get("image_url", value.get("url"))
    if isinstance(url, Mapping):
        url = url.get("url")
    if isinstance(url, File) or (isinstance(url, str) and not url.lstrip().startswith("{")):
        return _reference(name, url)
    raise invalid(name, f"{name} must be {FORMS}")


def _inline(name: str, text: str) -> bytes:
    """The bytes of a data URL, whatever type it claims to be."""
    match = _DATA_URL.match(text)
    if match is None or not match[2].lower().endswith(";base64"):
        raise invalid(name, f"{name} must be a data URL like data:image/png;base64,... of base64")
    try:
        data = base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, f"{name} is a data URL whose data is not base64: {error}") from None
    if image_type(data) is None:
        raise invalid(name, f"{name} is a data URL of no PNG, JPEG or WebP image")
    return data
