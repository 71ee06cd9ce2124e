"""Hypothesis strategies for protobuf messages: honest ones with some fields that are not."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

_WHOLE = [0, 1, 2, 7, 65, 4096]
_TYPES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from([0.0, 1.5, -1.0, 1e308, math.nan, math.inf, -math.inf]),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([*_WHOLE, 2**31, 2**32 - 1]),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([*_WHOLE, 2**40, 2**53, 2**63, 2**64 - 1]),
    FieldDescriptor.TYPE_FIXED64: st.sampled_from([0, 1, 2**64 - 1]),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([*range(8), 99, 2**31 - 1]),
    FieldDescriptor.TYPE_BYTES: st.sampled_from([b"", b"{}", b"\xff" * 100, b"[" * 10_000]),
}  # fmt: skip
_TEXTS = [
    "", "a", "x" * 300, "x" * 100_000, "two\nlines\r\x1b[31m", "\0", "\u2028é☃", "%s%n",
    "/etc/passwd", "../../x", "shm", "grpc://127.0.0.1:1",
]  # fmt: skip


def mutated(
    messages: st.SearchStrategy[M], texts: st.SearchStrategy[str], most: int = 3
) -> st.SearchStrategy[M]:
    """Copies of ``messages`` with up to ``most`` fields set anew, ``texts`` among the strings."""

    @st.composite
    def strategy(draw: st.DrawFn) -> M:
        original = draw(messages)
        message = type(original)()
        message.CopyFrom(original)
        for _ in range(draw(st.integers(0, most))):
            _mutate(draw, message, texts)
        return message

    return strategy()


def _mutate(draw: st.DrawFn, message: Message, texts: st.SearchStrategy[str]) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    # Set fields are worth more: others may not be looked at.
    present = [field for field, _ in message.ListFields()]
    field = draw(st.sampled_from(present + fields))
    if field.message_type is not None and not field.is_repeated:
        return _mutate(draw, getattr(message, field.name), texts)
    if not field.is_repeated:
        setattr(message, field.name, draw(_value(field, texts)))
        return
    items = getattr(message, field.name)
    change = draw(st.sampled_from(["clear", "add", "many", "inside"]))
    if change == "clear":
        del items[:]
    elif field.message_type is None:
        items.extend([draw(_value(field, texts))] * (300 if change == "many" else 1))
    elif change == "inside" and items:
        _mutate(draw, items[0], texts)
    else:
        added = items.add()
        _mutate(draw, added, texts)
        items.extend([added] * (300 if change == "many" else 0))


def _value(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(_TEXTS) | texts
    return _TYPES[field.type]
