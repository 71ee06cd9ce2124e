"""The door of a role: whether a Run can be taken at all, before anything is done for it."""

from __future__ import annotations

import re

from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Input, Run

MAX_INPUTS = 64
MAX_IMAGE_BYTES = 48 << 20  # of all reference images of a task; a frame of commands may have 64 MiB
MAX_ENDPOINTS = 64  # of one peer
MAX_MANIFEST_BYTES = 1 << 20

_ID = re.compile(r"[\x21-\x7e]{1,200}")
_WORD = re.compile(r"[\x21-\x7e]{1,64}")
_ADDRESS = re.compile(r"[\x20-\x7e]{0,1024}")


def problem(run: Run, max_images: int = 0) -> str:
    """What is wrong with the message itself, on one line that names the field, or nothing. ``max_images`` are
    the reference images that this role's model takes.

    Whether the model can serve the request is for the model to say.
    """
    if not _ID.fullmatch(run.task_id):
        return f"Run.task_id is {run.task_id[:64]!r}, expected {_ID.pattern}"
    if not _ID.fullmatch(run.job_id):
        return f"Run.job_id is {run.job_id[:64]!r}, expected {_ID.pattern}"
    if len(run.inputs) > MAX_INPUTS:
        return f"Run.inputs has {len(run.inputs)} entries, expected {MAX_INPUTS} at most"
    if len(run.images) > max_images:
        return f"Run.images has {len(run.images)} entries, expected {max_images} at most"
    if (nbytes := sum(len(image.data) for image in run.images)) > MAX_IMAGE_BYTES:
        return f"Run.images has {nbytes} bytes, expected {MAX_IMAGE_BYTES} at most"
    return next(filter(None, map(_input_problem, run.inputs)), "")


def _input_problem(source: Input) -> str:
    if not _ID.fullmatch(source.task_id):
        return f"Input.task_id is {source.task_id[:64]!r}, expected {_ID.pattern}"
    try:
        EndpointURL.parse(source.url[:300])
    except ValueError as error:
        return f"Input.url: {error}"
    if not _WORD.fullmatch(source.incarnation) or not _WORD.fullmatch(source.slot.arena):
        return f"Input of {source.task_id}: incarnation or arena is no word"
    if len(source.endpoints) > MAX_ENDPOINTS:
        return f"Input.endpoints has {len(source.endpoints)} entries, expected {MAX_ENDPOINTS} at most"
    for endpoint in source.endpoints:
        for name in ("engine", "address", "scope"):
            if not _ADDRESS.fullmatch(getattr(endpoint, name)):
                return f"TransferEndpoint.{name} is {getattr(endpoint, name)[:64]!r}, expected an address"
    if len(source.slot.manifest) > MAX_MANIFEST_BYTES:
        return f"Slot.manifest has {len(source.slot.manifest)} bytes, expected {MAX_MANIFEST_BYTES} at most"
    return ""
