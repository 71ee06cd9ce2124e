"""The formats of media files: what they are called in requests, on the disk and over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from triptych_proto.control_pb2 import Model

VIDEO, IMAGE = "video", "image"  # as in Model.output


@dataclass(frozen=True)
class Format:
    """One of the values of ``Generation.format``."""

    name: str
    output: str  # what it can hold: VIDEO or IMAGE
    suffix: str
    content_type: str


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format("mp4", VIDEO, ".mp4", "video/mp4"),
        Format("webm", VIDEO, ".webm", "video/webm"),
        Format("png", IMAGE, ".png", "image/png"),
        Format("jpeg", IMAGE, ".jpg", "image/jpeg"),
        Format("webp", IMAGE, ".webp", "image/webp"),
    )
}

_SUFFIXES = "|".join(re.escape(format.suffix) for format in FORMATS.values())
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,240}}({_SUFFIXES})")


def formats_of(facts: Model) -> list[str]:
    """The formats in which a model's output can be had; the first is the default."""
    output = facts.output or VIDEO
    return list(facts.formats) or [format.name for format in FORMATS.values() if format.output == output]


def file_name(task_id: str, format: Format) -> str:
    """A name of its own for every attempt: two decoders never write the same file."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", task_id) + format.suffix


def is_file_name(name: str) -> bool:
    """Whether this is the plain name of a media file: no path, no dot but that of a known suffix."""
    return _NAME.fullmatch(name) is not None
