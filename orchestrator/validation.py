"""The door of a control stream: what a peer sends is checked whole before any of it is believed.

Numbers that pass are finite and fit a database column; strings that pass are short and of one line; lists
that pass are short. So nothing behind this door has to ask again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError

from orchestrator.graph import GENERATION
from orchestrator.media import CONTENT_TYPES, FILE_NAME
from triptych_proto import control_pb2 as pb

MAX_FRAME_BYTES = 4 << 20  # a larger one would cost hundreds of megabytes to parse
MAX_EVENTS = 4096  # of one frame
MAX_CAPACITY = 4096
MAX_ORPHANS = 10_000  # told at once; further ones are told when these are gone
MAX_ROWS = 64  # of lists that have few: pools, endpoints, transfers, lost inputs, kinds of traffic
MAX_CHOICES = 1024
MAX_IMAGES = 16  # that a request may bring
OUTPUTS = frozenset({"", "video", "image"})
MAX_PROMPT_CHARS = 8192
MAX_TEXT_CHARS = 500  # of a message for people
MAX_BYTES = 1 << 50
MAX_SECONDS = 1e8
MAX_TOTAL_SECONDS = 1e12  # of all threads, over the life of a process
MAX_MULTIPLE = 4096  # of pixels or frames
MAX_AUDIO_RATE = 768_000
ENGINES = frozenset({"shm", "zmq", "mooncake"})

_ID = re.compile(r"[\x21-\x7e]{1,200}")
_INCARNATION = re.compile(r"[0-9a-f]{16}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ContractBroken(Exception):
    """A peer has sent what the wire contract does not allow. One line that names the field."""


def parse(data: bytes) -> pb.Events | None:
    """For gRPC, which would log a traceback; ``events`` complains of the None instead."""
    try:
        return pb.Events.FromString(data)
    except DecodeError:
        return None


def events(frame: object, role: str, opening: bool = False) -> list[pb.Event]:
    """What a role of kind ``role`` has sent, with texts cut to their limits; the first of the ``opening``
    frame is its Hello. Raises ContractBroken.
    """
    if not isinstance(frame, pb.Events):
        raise ContractBroken("a frame is not an Events message")
    _at_most(MAX_EVENTS, frame.events, "events in one frame")
    kinds = [event.WhichOneof("event") for event in frame.events]
    if opening and kinds[:1] != ["hello"]:
        raise ContractBroken("the first event of its stream is not Hello")
    if "hello" in kinds[opening:]:
        raise ContractBroken("Hello has come before")
    for kind, event in zip(kinds, frame.events, strict=True):
        if kind is not None:  # None: of a later version of the contract
            _CHECKS[kind](getattr(event, kind))
        if kind == "done":
            _output(event.done, role)
    return list(frame.events)


def one_line(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Fit for a log line: control characters are escaped, what is too long is cut."""
    if len(text) <= limit and text.isprintable():
        return text
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return line if len(line) <= limit and len(text) <= limit else f"{line[: limit - 3]}..."


# ---- each event


def _hello(hello: pb.Hello) -> None:
    _matches(_WORD, hello.role, "Hello.role")
    _matches(_INCARNATION, hello.incarnation, "Hello.incarnation")
    if not 1 <= hello.capacity <= MAX_CAPACITY:
        raise ContractBroken(f"Hello.capacity is {hello.capacity}, expected 1 to {MAX_CAPACITY}")
    _model(hello.model)
    _at_most(MAX_ROWS, hello.endpoints, "Hello.endpoints")
    for endpoint in hello.endpoints:
        _matches(_WORD, endpoint.engine, "TransferEndpoint.engine")
        _text(endpoint.address, "TransferEndpoint.address", 1024)
        _text(endpoint.scope, "TransferEndpoint.scope", 1024)
    _orphans(hello.orphans)
    _pools(hello.pools)
    _size(hello.largest_output_bytes, "Hello.largest_output_bytes")


def _model(model: pb.Model) -> None:
    for name in ("name", "family", "fingerprint"):
        _text(getattr(model, name), f"Model.{name}", 256)
    if not model.name:
        raise ContractBroken("Model.name is empty")
    if model.output not in ("", "video", "image"):
        raise ContractBroken(f"Model.output is {model.output[:64]!r}, expected 'video' or 'image'")
    _at_most(MAX_ROWS, model.formats, "Model.formats")
    for format in model.formats:
        _matches(_WORD, format, "Model.formats")
    for name in ("spatial_multiple", "temporal_multiple"):
        if getattr(model, name) > MAX_MULTIPLE:
            raise ContractBroken(f"Model.{name} is {getattr(model, name)}, expected {MAX_MULTIPLE} at most")
    for name in ("prompt", "negative_prompt"):
        _at_most(MAX_PROMPT_CHARS, getattr(model.defaults, name), f"characters of Model.defaults.{name}")
    for name in ("width", "height", "num_inference_steps"):
        if not getattr(model.defaults, name):
            raise ContractBroken(f"Model.defaults.{name} is 0")
    if model.output not in OUTPUTS:
        raise ContractBroken(f"Model.output is {model.output[:64]!r}, expected video or image")
    if not model.min_images <= model.max_images <= MAX_IMAGES:
        counts = f"{model.min_images} and {model.max_images}"
        raise ContractBroken(f"Model.min_images and max_images are {counts}, expected {MAX_IMAGES} at most")
    for name in ("options", "formats"):
        _at_most(MAX_ROWS, getattr(model, name), f"Model.{name}")
        for word in getattr(model, name):
            _matches(_WORD, word, f"Model.{name}")
    if not 0 <= model.defaults.fps <= MAX_MULTIPLE:
        raise ContractBroken(f"Model.defaults.fps is {model.defaults.fps}, expected 0 to {MAX_MULTIPLE}")
    for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "flow_shift", "strength"):
        if not math.isfinite(getattr(model.defaults, name)):
            raise ContractBroken(f"Model.defaults.{name} is no finite number")


def _input_ready(ready: pb.InputReady) -> None:
    _ids([ready.task_id], "InputReady.task_id")
    _at_most(MAX_ROWS, ready.transfers, "InputReady.transfers")
    for transfer in ready.transfers:
        _ids([transfer.from_task_id], "Transfer.from_task_id")
        if transfer.engine not in ENGINES:  # it becomes a metric's label, and those are never forgotten
            raise ContractBroken(f"Transfer.engine is {transfer.engine[:64]!r}, expected {sorted(ENGINES)}")
        _size(transfer.bytes, "Transfer.bytes")
        _seconds(transfer.seconds, "Transfer.seconds")


def _done(done: pb.Done) -> None:
    _ids([done.task_id], "Done.task_id")
    for name in ("waiting", "transfer", "compute", "saving"):
        _seconds(getattr(done.timing, name), f"Timing.{name}")
    if done.timing.batch > MAX_CAPACITY:
        raise ContractBroken(f"Timing.batch is {done.timing.batch}, expected {MAX_CAPACITY} at most")
    _size(done.peak_memory_bytes, "Done.peak_memory_bytes")


def _output(done: pb.Done, role: str) -> None:
    """The last stage writes a file of its own job's, every other one fills a slot."""
    expected = "file" if role == GENERATION.stages[-1].role else "slot"
    found = done.WhichOneof("output")
    if found != expected:
        raise ContractBroken(f"Done.output is {found}, expected {expected}")
    if expected == "slot":
        _matches(_WORD, done.slot.arena, "Slot.arena")
        _size(done.slot.offset, "Slot.offset")
        _size(done.slot.length, "Slot.length")
        return
    file, job = done.file, done.task_id.partition("/")[0]
    _matches(FILE_NAME, file.name, "MediaFile.name")
    if not file.name.startswith(job) or file.name[len(job) :][:1].isalnum():
        raise ContractBroken(f"MediaFile.name is {file.name!r}, expected one that begins with {job!r}")
    _size(file.bytes, "MediaFile.bytes")
    content_type = CONTENT_TYPES[PurePosixPath(file.name).suffix]
    if file.content_type != content_type:
        raise ContractBroken(
            f"MediaFile.content_type of {file.name} is {file.content_type[:64]!r}, expected {content_type!r}"
        )
    if not 0 <= file.fps <= MAX_MULTIPLE:
        raise ContractBroken(f"MediaFile.fps is {file.fps}, expected 0 to {MAX_MULTIPLE}")
    if file.audio_rate > MAX_AUDIO_RATE:
        raise ContractBroken(f"MediaFile.audio_rate is {file.audio_rate}, expected {MAX_AUDIO_RATE} at most")
    _text(file.store, "MediaFile.store", 1024)
    if file.store and file.hand_over:
        raise ContractBroken("MediaFile has both a store and hand_over, expected one at most")


def _failed(failed: pb.Failed) -> None:
    _ids([failed.task_id], "Failed.task_id")
    if failed.reason not in pb.Failed.Reason.values():
        raise ContractBroken(f"Failed.reason is {failed.reason}, which is not known")
    failed.message = one_line(failed.message)
    _at_most(MAX_ROWS, failed.lost_inputs, "Failed.lost_inputs")
    _ids(failed.lost_inputs, "Failed.lost_inputs")


def _stats(stats: pb.Stats) -> None:
    _pools(stats.pools)
    _size(stats.resident_bytes, "Stats.resident_bytes")
    _at_most(MAX_ROWS, stats.traffic, "Stats.traffic")
    for traffic in stats.traffic:
        _matches(_WORD, traffic.engine, "Traffic.engine")
        _matches(_WORD, traffic.direction, "Traffic.direction")
        _seconds(traffic.seconds, "Traffic.seconds", MAX_TOTAL_SECONDS)
    _unique([(row.engine, row.direction) for row in stats.traffic], "Stats.traffic")
    if stats.HasField("embedding_cache"):
        _cache(stats.embedding_cache)
    _at_most(MAX_CHOICES, stats.choices, "Stats.choices")
    for choice in stats.choices:
        for name in ("url", "engine", "reason"):
            setattr(choice, name, one_line(getattr(choice, name)))


def _cache(cache: pb.Cache) -> None:
    for name in ("hits", "misses", "evictions", "entries", "limit_bytes"):
        _size(getattr(cache, name), f"Cache.{name}")
    if cache.bytes > cache.limit_bytes:
        raise ContractBroken(f"Cache.bytes is {cache.bytes} of {cache.limit_bytes}")


def _orphans(orphans: pb.Orphans) -> None:
    if len(orphans.task_ids) > MAX_ORPHANS:
        del orphans.task_ids[MAX_ORPHANS:]
    _ids(orphans.task_ids, "Orphans.task_ids")


def _pools(pools: Any) -> None:
    _at_most(MAX_ROWS, pools, "pools")
    for pool in pools:
        _matches(_WORD, pool.name, "Pool.name")
        _size(pool.bytes, "Pool.bytes")
        if pool.free_bytes > pool.bytes:
            raise ContractBroken(f"Pool.free_bytes is {pool.free_bytes} of {pool.bytes}")
    _unique([pool.name for pool in pools], "pools")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "hello": _hello,
    "accepted": lambda accepted: _ids([accepted.task_id], "Accepted.task_id"),
    "input_ready": _input_ready,
    "progress": lambda progress: _ids([progress.task_id], "Progress.task_id"),
    "done": _done,
    "failed": _failed,
    "stats": _stats,
    "orphans": _orphans,
    "places": lambda places: None,  # any number is one: it only takes places away
}


# ---- values


def _matches(pattern: re.Pattern[str], text: str, name: str) -> None:
    if not pattern.fullmatch(text):
        raise ContractBroken(f"{name} is {text[:64]!r}, expected {pattern.pattern}")


def _text(text: str, name: str, limit: int) -> None:
    _at_most(limit, text, f"characters of {name}")
    if not text.isprintable():
        raise ContractBroken(f"{name} is {text[:64]!r}, expected printable characters")


def _ids(task_ids: Iterable[str], name: str) -> None:
    for task_id in task_ids:
        _matches(_ID, task_id, name)


def _size(value: int, name: str) -> None:
    if value > MAX_BYTES:
        raise ContractBroken(f"{name} is {value}, expected {MAX_BYTES} at most")


def _seconds(value: float, name: str, limit: float = MAX_SECONDS) -> None:
    if not 0 <= value <= limit:  # false for NaN too
        raise ContractBroken(f"{name} is {value}, expected 0 to {limit:g}")


def _at_most(limit: int, items: Any, name: str) -> None:
    if len(items) > limit:
        raise ContractBroken(f"{len(items)} {name}, expected {limit} at most")


def _unique(keys: list[Any], name: str) -> None:
    if len(set(keys)) < len(keys):  # two samples of one name and labels spoil a whole scrape of metrics
        raise ContractBroken(f"{name}: the same twice")
