"""A stand-in for a model: stages that sleep, over tensors of any size, to measure and test all the rest.

Named by ``--model emulated:KEY=VALUE,...``. What each stage makes depends on all it was given, so a tensor
that arrived wrong, or at the wrong place, shows in the video.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from PIL.Image import Image

from services.media.formats import IMAGE, VIDEO, formats_of
from services.model.base import (
    USUAL_PIXELS,
    CacheStats,
    Control,
    Decoded,
    DeviceLost,
    Lane,
    Limits,
    ModelError,
    Outcome,
    OutOfMemory,
    Sound,
    Value,
)
from services.model.batch import run_lanes
from services.model.request import check_images, check_request
from services.model_source import EMULATED
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

STAGES = {Role.ENCODER: "encode", Role.DENOISER: "denoise", Role.DECODER: "decode"}
# Words in a prompt by which the stage named by ``fatal`` comes to grief.
FATAL, HUGE, LOST = "fatal", "huge", "lost"


@dataclass(frozen=True)
class Emulation:
    """Seconds each stage takes, payload bytes it hands on, and which stage prompts can harm."""

    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    embeddings: int = 4096
    latents: int = 4096
    grain: int = 0  # 1: frames of noise, which make a large file
    images: tuple[int, int] = (0, 0)  # reference images: at least, at most
    fatal: str = ""  # a stage that prompts can harm: "fatal" ends its process, "lost" its device, and for
    # "huge" there is too little memory
    output: str = VIDEO
    sound: int = 0  # samples per second of the videos' sound; 0: they are silent

    @staticmethod
    def parse(model: str) -> Emulation:
        """``emulated:encode=0.1,latents=8388608,fatal=denoise``; ModelError names what is wrong."""
        known: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(STAGES.values(), float),
            "embeddings": int,
            "latents": int,
            "grain": int,
            "images": _range,
            "fatal": _stage,
            "output": _output,
            "sound": _rate,
        }
        given: dict[str, Any] = {}
        for part in filter(None, model[len(EMULATED) :].split(",")):
            key, _, value = part.partition("=")
            try:
                given[key] = known[key](value)
            except (KeyError, ValueError):
                raise ModelError(
                    f"{model}: expected KEY=NUMBER with one of {', '.join(known)} (of fatal the name of a"
                    f" stage, of output {VIDEO} or {IMAGE}, of images N or MIN-MAX), found {part!r}"
                ) from None
        emulation = Emulation(**given)
        if emulation.output == IMAGE and emulation.sound:
            raise ModelError(f"{model}: images have no sound")
        return emulation


class EmulatedModel:
    """Implements ``services.model.base.RoleModel``."""

    device = torch.device("cpu")

    def __init__(self, role: Role, model: str, limits: Limits, name: str | None = None) -> None:
        self._role = role
        self._emulation = Emulation.parse(model)
        defaults = Generation(
            width=64, height=64, num_frames=5, fps=8, num_inference_steps=4, guidance_scale=1.0
        )
        fingerprint = f"{self._emulation.embeddings}-{self._emulation.latents}"
        if self._emulation.output == IMAGE:
            defaults.num_frames, defaults.fps = 1, 0
            fingerprint += f"-{IMAGE}"
        self.facts = Model(
            name=name or "emulated",
            family="emulated",
            # What must agree between roles is the size of what they hand on, not the time they take.
            fingerprint=fingerprint,
            spatial_multiple=2,
            temporal_multiple=4,
            max_pixels=limits.max_pixels or USUAL_PIXELS,
            max_frames=limits.max_frames if self._emulation.output == VIDEO else 1,
            max_steps=limits.max_steps,
            defaults=defaults,
            negative_prompt=True,
            output=self._emulation.output,
            sound=bool(self._emulation.sound),
            min_images=self._emulation.images[0],
            max_images=self._emulation.images[1],
        )
        self.facts.formats.extend(formats_of(self.facts))

    def largest_output_bytes(self) -> int:
        return self._bytes_out[self._role]

    def largest_input_bytes(self) -> int:
        return {
            Role.ENCODER: 0,
            Role.DENOISER: self._emulation.embeddings,
            Role.DECODER: self._emulation.latents,
        }[self._role]

    def output_bytes(self, generation: Generation) -> int:
        return self._bytes_out[self._role]

    def cache_stats(self) -> CacheStats | None:
        return None

    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        check_request(self.facts, generation)
        self._suffer(generation)
        if self._role is Role.ENCODER:
            _sleep(self._emulation.encode)
            check_images(self.facts, generation, images)
            pictures = [str(image.size).encode() + image.tobytes() for image in images]
            key = _digest(generation.prompt.encode(), generation.negative_prompt.encode(), *pictures)
            return {"embeddings": _noise(key, self._emulation.embeddings)}
        key = _latents_key(generation, inputs)
        self._denoise(generation, control)
        return {"latents": _noise(key, self._emulation.latents)}

    def batch_key(self, generation: Generation, inputs: Mapping[str, Value]) -> Hashable:
        if self._role is not Role.DENOISER:
            return None
        shape = generation.width, generation.height, generation.num_frames
        return *shape, generation.num_inference_steps

    def run_batch(self, lanes: Sequence[Lane]) -> list[Outcome]:
        """Takes as long as one run does."""

        def open_lane(lane: Lane) -> bytes:
            check_request(self.facts, lane.generation)
            self._suffer(lane.generation)
            return _latents_key(lane.generation, lane.inputs)

        def loop(lanes: list[Lane], keys: list[bytes], control: Control) -> list[dict[str, Value]]:
            self._denoise(lanes[0].generation, control)
            return [{"latents": _noise(key, self._emulation.latents)} for key in keys]

        return run_lanes(lanes, open_lane, loop)

    def _denoise(self, generation: Generation, control: Control) -> None:
        steps = generation.num_inference_steps
        for step in range(steps):
            control.raise_if_cancelled()
            _sleep(self._emulation.denoise / steps)
            control.progress(step + 1, steps)

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        check_request(self.facts, generation)
        self._suffer(generation)
        key = _digest(_bytes(inputs["latents"]))
        return Decoded(self._frames(generation, key, control), self._sound(generation, key))

    def _sound(self, generation: Generation, key: bytes) -> Sound | None:
        """A tone, as long as the video, whose pitch is that of the key."""
        rate = self._emulation.sound
        if not rate or not generation.fps > 0:
            return None
        hertz = 200 + key[0] * 4
        phases = np.arange(round(rate * generation.num_frames / generation.fps)) * (2 * np.pi * hertz / rate)
        return Sound(np.tile(np.sin(phases).astype(np.float32) / 2, (2, 1)), rate)

    def _frames(self, generation: Generation, key: bytes, control: Control) -> Iterator[np.ndarray]:
        for index in range(generation.num_frames):
            control.raise_if_cancelled()
            _sleep(self._emulation.decode / generation.num_frames)
            shape = (1, generation.height, generation.width, 3)
            own = np.frombuffer(_digest(key, bytes([index % 256])), np.uint8)
            if self._emulation.grain:
                yield np.random.default_rng(own).integers(256, size=shape, dtype=np.uint8)
            else:
                yield np.broadcast_to(own[:3], shape).copy()

    def _suffer(self, generation: Generation) -> None:
        """What a real model does to its process when memory or device fail it."""
        if self._emulation.fatal != STAGES[self._role]:
            return
        words = generation.prompt.split()
        if FATAL in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if LOST in words:
            raise DeviceLost("emulated: it fails every call")
        if HUGE in words:
            raise OutOfMemory("emulated: too little memory for this request")

    @property
    def _bytes_out(self) -> dict[Role, int]:
        return {
            Role.ENCODER: self._emulation.embeddings,
            Role.DENOISER: self._emulation.latents,
            Role.DECODER: 0,
        }


def _sleep(seconds: float) -> None:
    if seconds > 0:  # else it would give up the interpreter, which a model that computes nothing does not
        time.sleep(seconds)


def _latents_key(generation: Generation, inputs: Mapping[str, Value]) -> bytes:
    more = generation.seed, generation.num_inference_steps, generation.guidance_scale
    return _digest(_bytes(inputs["embeddings"]), str(more).encode())


def _stage(name: str) -> str:
    if name not in STAGES.values():
        raise ValueError(name)
    return name


def _output(name: str) -> str:
    if name not in (VIDEO, IMAGE):
        raise ValueError(name)
    return name


def _rate(text: str) -> int:
    if not 8_000 <= int(text) <= 192_000:
        raise ValueError(text)
    return int(text)


def _range(text: str) -> tuple[int, int]:
    """``2`` or ``0-2``."""
    least, dash, most = text.partition("-")
    low, high = int(least), int(most if dash else least)
    if not 0 <= low <= high:
        raise ValueError(text)
    return low, high


def _digest(*parts: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


def _bytes(value: Value) -> memoryview:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"expected a tensor, found {type(value).__name__}")
    return value.contiguous().view(torch.uint8).numpy().data


def _noise(key: bytes, count: int) -> torch.Tensor:
    """``count`` bytes that depend on ``key`` alone, made at memory speed."""
    words = np.full(-(-count // 8), np.frombuffer(key, np.uint64)[0])
    return torch.from_numpy(words.view(np.uint8)[:count])
