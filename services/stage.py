"""What a role does with the inputs of a task: hand on tensors, or write a media file."""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import xxhash

from services.media.claims import Claim, recover
from services.media.mp4 import Mp4Writer
from services.model.base import Cancelled, Control, Lane, RoleModel, Value
from triptych_proto.control_pb2 import Generation, MediaFile, Run


@dataclass
class Product:
    """What a task made: ``values`` for the next role, or ``file`` for the client."""

    task_id: str
    values: dict[str, Value] | None = None
    file: MediaFile | None = None
    claim: Claim | None = None  # on the file, until it is accepted or discarded
    compute_seconds: float = 0.0
    batch: int = 1  # tasks that shared the compute
    saving_seconds: float = 0.0  # what the media encoder still had to do when the last frame was computed


class Stage(Protocol):
    """What a role does with a task. ``discard`` and ``accept`` are quick, never raise, can be repeated."""

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        """Runs on the compute thread, one task at a time. Raises as the model does, and MediaError."""
        ...

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

    def __init__(self, model: RoleModel) -> None:
        self._model = model

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        started = time.monotonic()
        values = self._model.run(run.generation, inputs, control)
        return Product(run.task_id, values=values, compute_seconds=time.monotonic() - started)

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

    def __init__(self, model: RoleModel, directory: Path) -> None:
        self._model = model
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        claim = Claim.open(media_path(self.directory, file_name(run.task_id)), run.task_id)
        try:
            decoded = self._model.decode(run.generation, inputs, control)
            size = decoded.size or (run.generation.width, run.generation.height)
            return self._write(claim, run.generation, size, decoded.frames, control)
        except BaseException:
            claim.discard()
            raise

    def _write(
        self,
        claim: Claim,
        generation: Generation,
        size: tuple[int, int],
        chunks: Iterator[np.ndarray],
        control: Control,
    ) -> Product:
        started = time.monotonic()
        checksum = xxhash.xxh3_64()
        done = 0
        with Mp4Writer(claim.path, *size, generation.fps) as writer:
            for frames in chunks:
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
            content_type="video/mp4",
            width=facts.width,
            height=facts.height,
            num_frames=facts.num_frames,
            fps=facts.fps,
            frames_checksum=checksum.intdigest(),
        )
        claim.finish(file)
        return Product(
            claim.task_id,
            file=file,
            claim=claim,
            compute_seconds=computed - started,
            saving_seconds=time.monotonic() - computed,
        )

    def discard(self, product: Product) -> None:
        if product.claim is not None:
            product.claim.discard()

    def accept(self, product: Product) -> None:
        if product.claim is not None:
            product.claim.accept()

    def recover(self) -> list[Product]:
        return [Product(claim.task_id, file=claim.file, claim=claim) for claim in recover(self.directory)]


def file_name(task_id: str) -> str:
    """A name of its own for every attempt: two decoders never write the same file."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", task_id) + ".mp4"


def media_path(directory: Path, name: str) -> Path:
    """The file ``name`` in ``directory``; ValueError if it is not a plain name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,240}\.mp4", name):
        raise ValueError(f"{name[:64]!r} is not the name of a media file")
    return directory / name
