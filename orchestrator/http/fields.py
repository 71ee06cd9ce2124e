"""The fields of a video request: one table of names, types and ranges.

A value is coerced by the type of its field, never by how it looks, since forms send every value as text.
``null`` stands for a field left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.http.body import parse_json
from orchestrator.http.errors import ApiError, invalid

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string, not {_shown(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise invalid(name, f"{name} is not valid Unicode: it has half a surrogate pair")
    return value


def integer(name: str, value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise invalid(name, f"{name} must be an integer, not {_shown(value)}")


def number(name: str, value: object) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    # An int too large for a double is as far out of range as infinity; NaN is not below anything.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    raise invalid(name, f"{name} must be a finite number, not {_shown(value)}")


def size(name: str, value: object) -> tuple[int, int]:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise invalid(name, f'{name} must be a string like "832x480", not {_shown(value)}')
    return int(match[1]), int(match[2])


def members(name: str, value: object) -> dict[str, Any]:
    """An object: nested names in a form, an object in JSON, or its JSON text."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise invalid(name, f"{name} must be a JSON object; {_shown(value)} is not JSON") from None
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object, not {_shown(value)}")
    return value


@dataclass(frozen=True)
class Field:
    """A field, and for numbers the closed range it must lie in, whatever the model."""

    name: str
    coerce: Callable[[str, object], Any]
    low: float = -math.inf
    high: float = math.inf

    def parse(self, value: object) -> Any:
        result = self.coerce(self.name, value)
        if self.coerce in (integer, number) and not self.low <= result <= self.high:
            raise invalid(
                self.name, f"{self.name} must be from {self.low} to {self.high}, not {_shown(value)}"
            )
        return result


FIELDS = {
    field.name: field
    for field in (
        Field("prompt", text),
        Field("negative_prompt", text),
        Field("model", text),
        Field("size", size),
        Field("width", integer, 1, MAX_UINT32),
        Field("height", integer, 1, MAX_UINT32),
        Field("seconds", number, 0.001, 3600),
        Field("fps", number, 1, 240),
        Field("num_frames", integer, 1, MAX_UINT32),
        Field("num_inference_steps", integer, 1, MAX_UINT32),
        Field("guidance_scale", number, 0, 100),
        Field("seed", integer, 0, MAX_UINT64),
        Field("user", text),  # OpenAI's tag of an end user: accepted, and of no effect
    )
}

# Objects whose members are fields themselves, as some clients wrap what OpenAI's API does not name.
WRAPPERS = ("extra_body", "extra_params")

# What other servers of this API know and this one does not: refused, since ignoring it would surprise.
UNSUPPORTED = frozenset(
    (
        "input_reference",
        "input_references",
        "image",
        "image_reference",
        "reference_url",
        "video",
        "video_reference",
        "video_url",
        "source_video",
        "n",
        "num_outputs_per_prompt",
        "guidance_scale_2",
        "true_cfg_scale",
        "flow_shift",
        "max_sequence_length",
        "enable_teacache",
        "cache_dit_params",
        "enable_frame_interpolation",
        "enable_upscaling",
        "lora",
        "quality",
        "output_quality",
        "output_compression",
        "output_path",
        "perf_dump_path",
        "profile",
        "stream",
    )
)


def parse_fields(raw: Mapping[str, object]) -> dict[str, Any]:
    """The given fields with their values coerced, all in their ranges; a ``null`` is left out.

    Raises:
        ApiError: 400 naming the field.
    """
    given: dict[str, Any] = {}
    for name, value in _unwrapped(raw):
        if value is None:
            continue
        if name not in FIELDS:
            raise _unknown(name)
        if name in given:
            raise invalid(name, f"{name} is given more than once")
        given[name] = FIELDS[name].parse(value)
    return given


def _unwrapped(raw: Mapping[str, object]) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in raw.items():
        if name in WRAPPERS and value is not None:
            pairs.extend(members(name, value).items())
        else:
            pairs.append((name, value))
    return pairs


def _unknown(name: str) -> ApiError:
    shown = name[:64]
    if name in UNSUPPORTED:
        return ApiError(
            400, f"{shown} is not supported by this server", code="unsupported_field", param=shown
        )
    known = ", ".join(FIELDS)
    message = f"unknown field {shown!r}; the fields of a request are {known}"
    return ApiError(400, message, code="unknown_field", param=shown)


def _shown(value: object) -> str:
    """A value in a message: short, and never a whole prompt."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_UINT64:
        return "a larger number"
    if not isinstance(value, (str, int, float, type(None))):
        return "an array" if isinstance(value, list) else "an object"
    shown = repr(value)
    return shown if len(shown) <= 48 else f"{shown[:45]}..."
