"""What a role does with the inputs of a task: hand on tensors, or write a media file."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import xxhash

from services.media.claims import Claim
from services.media.encoders import X264, VideoEncoder
from services.media.formats import FORMATS, Format, formats_of
from services.media.open import open_writer
from services.media.reference import MAX_PIXELS, decode_all
from services.media.store import Store
from services.model.base import Cancelled, Control, Decoded, InvalidRequest, Lane, RoleModel, Value
from triptych_proto.control_pb2 import Generation, MediaFile, Run


@dataclass
class Product:
    """What a task made: ``values`` for the next role, or ``file`` for the client."""

    task_id: str
    values: dict[str, Value] | None = None
    file: MediaFile | None = None
    claim: Claim | None = None  # on the file, until it is accepted or discarded
    delivered: bool = True  # the file lies where it can be read; else it is still to be brought there
    compute_seconds: float = 0.0
    batch: int = 1  # tasks that shared the compute
    saving_seconds: float = 0.0  # what the media encoder still had to do when the last frame was computed


class Stage(Protocol):
    """What a role does with a task. ``discard`` and ``accept`` never raise and can be repeated."""

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        """Runs on the compute thread, one task at a time. Raises as the model does, and MediaError."""
        ...

    def deliver(self, product: Product, control: Control) -> None:
        """Brings a file that is not yet delivered where it can be read. Runs on other threads, several at
        once. Can be repeated. Raises MediaError and Cancelled; then ``discard`` is left to the caller.
        """

    def discard(self, product: Product) -> None:
        """Undoes what a product nobody wants any more has left outside of memory."""

    def accept(self, product: Product) -> None:
        """The result is recorded: what the product has left outside of memory stays."""

    def recover(self) -> list[Product]:
        """What dead processes have finished and nobody has accepted. Reads the disk; before any work."""
        ...


@dataclass(frozen=True)
class Work:
    """What ``Stage.run`` is given, for one of several tasks."""

    run: Run
    inputs: Mapping[str, Value]  # not read any more once ``control`` has raised Cancelled
    control: Control


@runtime_checkable
class BatchStage(Stage, Protocol):
    """A stage whose tasks can share a loop."""

    def batch_key(self, run: Run, inputs: Mapping[str, Value]) -> Hashable:
        """Tasks of equal keys can share one; None: this one runs alone. Runs on the event loop."""
        ...

    def run_batch(self, works: Sequence[Work]) -> Sequence[Product | Exception]:
        """As ``run`` for each. What the loop itself raises may be any one task's fault."""
        ...


class TensorStage:
    """Encoder and denoiser: the output goes into a slot."""

    def __init__(self, model: RoleModel, max_reference_pixels: int = MAX_PIXELS) -> None:
        """``max_reference_pixels`` are those of one reference image, before anything is done with it."""
        self._model = model
        self._max_reference_pixels = max_reference_pixels

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        started = time.monotonic()
        images = decode_all([image.data for image in run.images], self._max_reference_pixels)
        control.raise_if_cancelled()
        values = self._model.run(run.generation, inputs, control, images)
        return Product(run.task_id, values=values, compute_seconds=time.monotonic() - started)

    def deliver(self, product: Product, control: Control) -> None:
        """There are no files."""

    def batch_key(self, run: Run, inputs: Mapping[str, Value]) -> Hashable:
        return self._model.batch_key(run.generation, inputs)

    def run_batch(self, works: Sequence[Work]) -> Sequence[Product | Exception]:
        started = time.monotonic()
        outcomes = self._model.run_batch([Lane(w.run.generation, w.inputs, w.control) for w in works])
        seconds = time.monotonic() - started
        size = sum(isinstance(outcome, (dict, Cancelled)) for outcome in outcomes)
        return [
            outcome
            if isinstance(outcome, Exception)
            else Product(work.run.task_id, values=outcome, compute_seconds=seconds, batch=size)
            for work, outcome in zip(works, outcomes, strict=True)
        ]

    def discard(self, product: Product) -> None:
        """Tensors that were not put into a slot vanish by themselves."""

    def accept(self, product: Product) -> None:
        """There is nothing but the slot."""

    def recover(self) -> list[Product]:
        return []


class MediaStage:
    """Decoder: frames are encoded while further ones are computed; pixels never leave this process."""

    def __init__(self, model: RoleModel, store: Store, encoder: VideoEncoder = X264) -> None:
        """``encoder`` is that of MP4."""
        self._model = model
        self._store = store
        self._encoder = encoder

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        format = self._format(run.generation)
        claim = self._store.claim(run.task_id, format)
        try:
            decoded = self._model.decode(run.generation, inputs, control)
            return self._write(claim, format, run.generation, decoded, control)
        except BaseException:
            self._store.discard(claim)
            raise

    def _format(self, generation: Generation) -> Format:
        """What was asked for, or the model's default. Raises InvalidRequest."""
        known = formats_of(self._model.facts)
        name = generation.format or known[0]
        if name not in known:
            raise InvalidRequest(f"format is {name[:64]!r}, expected one of {', '.join(known)}")
        if generation.quality > 100:
            raise InvalidRequest(f"quality is {generation.quality}, expected at most 100")
        return FORMATS[name]

    def _write(
        self, claim: Claim, format: Format, generation: Generation, decoded: Decoded, control: Control
    ) -> Product:
        started = time.monotonic()
        checksum = xxhash.xxh3_64()
        done = 0
        with open_writer(
            claim.path,
            format.name,
            *(decoded.size or (generation.width, generation.height)),
            generation.fps,
            sound=decoded.sound,
            quality=generation.quality,
            encoder=self._encoder,
        ) as writer:
            for frames in decoded.frames:
                control.raise_if_cancelled()
                checksum.update(np.ascontiguousarray(frames).data)
                writer.write(frames)
                done += len(frames)
                control.progress(done, generation.num_frames)
            computed = time.monotonic()
            facts = writer.finish()
        file = MediaFile(
            name=claim.path.name,
            bytes=facts.bytes,
            content_type=format.content_type,
            width=facts.width,
            height=facts.height,
            num_frames=facts.num_frames,
            fps=facts.fps,
            frames_checksum=checksum.intdigest(),
            audio_rate=facts.audio_rate,
        )
        return Product(
            claim.task_id,
            file=self._store.keep(claim, file),
            claim=claim,
            delivered=not self._store.remote,
            compute_seconds=computed - started,
            saving_seconds=time.monotonic() - computed,
        )

    def deliver(self, product: Product, control: Control) -> None:
        if product.claim is not None and product.file is not None:
            self._store.deliver(product.claim, product.file, control)
            product.delivered = True

    def discard(self, product: Product) -> None:
        if product.claim is not None:
            self._store.discard(product.claim)

    def accept(self, product: Product) -> None:
        if product.claim is not None:
            self._store.accept(product.claim)

    def recover(self) -> list[Product]:
        return [
            Product(claim.task_id, file=claim.file, claim=claim, delivered=not self._store.remote)
            for claim in self._store.recover()
        ]
