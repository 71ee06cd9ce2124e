"""Fields of requests: their types and ranges, and how a body's raw values become theirs.

A value is coerced by the type of its field, never by how it looks, since forms send every value as text.
``null`` stands for a field left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.http.body import File, parse_json
from orchestrator.http.errors import ApiError, invalid

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(name, f"{name} is not valid Unicode: it has half a surrogate pair") from None
    if "\0" in value:  # PostgreSQL cannot store it
        raise invalid(name, f"{name} must not contain the character NUL (U+0000)")
    return value


def integer(name: str, value: object) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # in JSON 4.0 is the number 4
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


def boolean(name: str, value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise invalid(name, f"{name} must be true or false")
    return value


def choice(*allowed: str) -> Callable[[str, object], str]:
    """The coercion to one of these words."""

    def coerce(name: str, value: object) -> str:
        if value not in allowed or not isinstance(value, str):
            raise invalid(name, f"{name} must be one of {', '.join(allowed)}, not {_shown(value)}")
        return value

    return coerce


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
class Given:
    """What a request gives."""

    values: dict[str, Any]  # coerced, in their ranges
    ignored: tuple[str, ...] = ()  # names of unknown fields that were let pass


@dataclass(frozen=True)
class Unsupported:
    """A field that other servers of this API honour: refused, since ignoring it would surprise, unless its
    value asks for nothing.
    """

    name: str
    reason: str
    harmless: tuple[object, ...] = ()

    def check(self, value: object) -> None:
        """Raises ApiError, 400."""
        nothing = ("", False, "false", "False", *self.harmless)  # Python's clients write False into forms
        if not any(type(value) is type(none) and value == none for none in nothing):
            message = f"{self.name} is not supported: {self.reason}"
            raise ApiError(400, message, code="unsupported_field", param=self.name)


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


# Objects whose members are fields themselves, as some clients wrap what OpenAI's API does not name.
WRAPPERS = ("extra_body", "extra_params")


class Fields:
    """All fields that one kind of request knows."""

    def __init__(self, known: Sequence[Field], unsupported: Sequence[Unsupported] = ()) -> None:
        self.known = {field.name: field for field in known}
        self.unsupported = {field.name: field for field in unsupported}

    def parse(self, raw: Mapping[str, object], *, ignore_unknown: bool = False) -> Given:
        """A ``null`` is a field left out. Raises ApiError: 400 naming the field."""
        values: dict[str, Any] = {}
        ignored: list[str] = []
        for name, value in _unwrapped(raw):
            if value is None:
                continue
            if name in self.known:
                if name in values:
                    raise invalid(name, f"{name} is given more than once")
                values[name] = self.known[name].parse(value)
            elif name in self.unsupported:
                self.unsupported[name].check(value)
            elif ignore_unknown:
                ignored.append(name)
            else:
                known = ", ".join(self.known)
                message = f"unknown field {name[:64]!r}; the fields of a request are {known}"
                raise ApiError(400, message, code="unknown_field", param=name[:64])
        return Given(values, tuple(ignored))


def _unwrapped(raw: Mapping[str, object]) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in raw.items():
        if name in WRAPPERS and value is not None:
            pairs.extend(members(name, value).items())
        else:
            pairs.append((name, value))
    return pairs


def _shown(value: object) -> str:
    """A value in a message: short, and never a whole prompt."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_UINT64:
        return "a larger number"
    if isinstance(value, File):
        return "a file"
    if not isinstance(value, (str, int, float, type(None))):
        return "an array" if isinstance(value, list) else "an object"
    shown = repr(value)
    return shown if len(shown) <= 48 else f"{shown[:45]}..."
