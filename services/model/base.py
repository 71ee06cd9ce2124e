"""What a role asks of a model, whatever its family."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from PIL.Image import Image

from transfer.manifest import Value
from triptych_proto.control_pb2 import Generation, Model

__all__ = [
    "CacheStats",
    "Cancelled",
    "Control",
    "Decoded",
    "DeviceLost",
    "InvalidRequest",
    "Lane",
    "Limits",
    "ModelError",
    "OutOfMemory",
    "Outcome",
    "RoleModel",
    "Sound",
    "USUAL_PIXELS",
    "Value",
]


class ModelError(Exception):
    """The model cannot be opened; one line that says why."""


class InvalidRequest(Exception):
    """No instance can serve this request; names the field."""


class Cancelled(Exception):
    """Raised inside a run that nobody wants any more."""


class OutOfMemory(Exception):
    """The device has too little memory for this run now; the next one may fit. Says how much there is."""


class DeviceLost(Exception):
    """This process cannot compute any more: its device fails every call. Another process may."""


USUAL_PIXELS = 1280 * 720


@dataclass(frozen=True)
class Limits:
    """The largest request that is admitted."""

    max_pixels: int | None = None  # width * height; None: USUAL_PIXELS, or what the model makes by default
    max_frames: int = 129
    max_steps: int = 200


EMBEDDING_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class CacheStats:
    """Of a cache, since it was made; a hit or a miss is one text in one text encoder."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    limit_bytes: int


class Control(Protocol):
    """The caller's side of a run."""

    def progress(self, step: int, total: int) -> None:
        """Called after each denoising step, the first is step 1."""

    def raise_if_cancelled(self) -> None:
        """Raises Cancelled when the run should stop."""


@dataclass(frozen=True)
class Lane:
    """One of several runs that share a loop."""

    generation: Generation
    inputs: Mapping[str, Value]  # not read any more once ``control`` has raised Cancelled
    control: Control


Outcome: TypeAlias = "dict[str, Value] | Exception"  # of a lane: what ``run`` returns, or what it raises


@dataclass(frozen=True)
class Sound:
    """The sound track of a video."""

    samples: np.ndarray  # float32 (channels, n) in [-1, 1]
    rate: int  # samples per second


@dataclass(frozen=True)
class Decoded:
    """What a decoder makes of latents."""

    frames: Iterator[np.ndarray]  # uint8 (n, height, width, 3) in order, each as soon as it exists
    sound: Sound | None = None
    size: tuple[int, int] | None = None  # width and height, where a reference image has changed the request's


class RoleModel(Protocol):
    """A role's part of a model. One run at a time: schedulers and guiders keep their state in the model."""

    facts: Model
    device: torch.device  # where it computes, and where the tensors that it hands on lie

    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        """Encoder and denoiser: what this role hands on. Its tensors share no memory with ``inputs``,
        and are computed: nothing of the run is still queued on the device.

        ``images`` are the reference images (RGB, of any size), for the encoder alone. Raises InvalidRequest,
        Cancelled, ValueError that names a missing or unexpected input, OutOfMemory and DeviceLost.
        """
        ...

    def batch_key(self, generation: Generation, inputs: Mapping[str, Value]) -> Hashable:
        """Runs of equal keys may share a loop; one whose key is None runs alone. Quick, and never raises."""
        ...

    def run_batch(self, lanes: Sequence[Lane]) -> list[Outcome]:
        """As ``run`` for each, in one loop; they have equal keys, which are not None.

        A lane that cannot begin, or is cancelled, leaves the others as they are. What the loop itself raises
        may be any one lane's fault. Results differ from those of ``run`` by rounding alone.
        """
        ...

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        """Decoder: frames, computed as they are asked for, and sound. Both it and its frames raise as
        ``run``.
        """
        ...

    def largest_output_bytes(self) -> int:
        """Payload bytes of the largest output handed on within the limits; 0 for the decoder."""
        ...

    def largest_input_bytes(self) -> int:
        """Payload bytes of the largest input within the limits; 0 for the encoder."""
        ...

    def output_bytes(self, generation: Generation) -> int:
        """An upper bound for the payload of this request's output."""
        ...

    def cache_stats(self) -> CacheStats | None:
        """Of the cache of text embeddings, from any thread; None where there is none."""
        ...
