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

from services.model.base import Control, Decoded, Lane, Limits, ModelError, Outcome, Value
from services.model.batch import run_lanes
from services.model.request import check_request
from services.model_source import EMULATED
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

STAGES = {Role.ENCODER: "encode", Role.DENOISER: "denoise", Role.DECODER: "decode"}
FATAL = "fatal"


@dataclass(frozen=True)
class Emulation:
    """Seconds each stage takes, payload bytes it hands on, and which stage prompts can kill."""

    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    embeddings: int = 4096
    latents: int = 4096
    fatal: str = ""  # a stage: with the word "fatal" in its prompt it ends its process

    @staticmethod
    def parse(model: str) -> Emulation:
        """``emulated:encode=0.1,latents=8388608,fatal=denoise``; ModelError names what is wrong."""
        known: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(STAGES.values(), float),
            "embeddings": int,
            "latents": int,
            "fatal": _stage,
        }
        given: dict[str, Any] = {}
        for part in filter(None, model[len(EMULATED) :].split(",")):
            key, _, value = part.partition("=")
            try:
                given[key] = known[key](value)
            except (KeyError, ValueError):
                raise ModelError(
                    f"{model}: expected KEY=NUMBER with one of {', '.join(known)} (of fatal the name of a"
                    f" stage), found {part!r}"
                ) from None
        return Emulation(**given)


class EmulatedModel:
    """Implements ``services.model.base.RoleModel``."""

    def __init__(self, role: Role, model: str, limits: Limits, name: str | None = None) -> None:
        self._role = role
        self._emulation = Emulation.parse(model)
        defaults = Generation(
            width=64, height=64, num_frames=5, fps=8, num_inference_steps=4, guidance_scale=1.0
        )
        self.facts = Model(
            name=name or "emulated",
            family="emulated",
            # What must agree between roles is the size of what they hand on, not the time they take.
            fingerprint=f"{self._emulation.embeddings}-{self._emulation.latents}",
            spatial_multiple=2,
            temporal_multiple=4,
            max_pixels=limits.max_pixels,
            max_frames=limits.max_frames,
            max_steps=limits.max_steps,
            defaults=defaults,
            negative_prompt=True,
        )

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

    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        check_request(self.facts, generation)
        self._die_of(generation)
        if self._role is Role.ENCODER:
            time.sleep(self._emulation.encode)
            key = _digest(generation.prompt.encode(), generation.negative_prompt.encode())
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
            self._die_of(lane.generation)
            return _latents_key(lane.generation, lane.inputs)

        def loop(lanes: list[Lane], keys: list[bytes], control: Control) -> list[dict[str, Value]]:
            self._denoise(lanes[0].generation, control)
            return [{"latents": _noise(key, self._emulation.latents)} for key in keys]

        return run_lanes(lanes, open_lane, loop)

    def _denoise(self, generation: Generation, control: Control) -> None:
        steps = generation.num_inference_steps
        for step in range(steps):
            control.raise_if_cancelled()
            time.sleep(self._emulation.denoise / steps)
            control.progress(step + 1, steps)

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        check_request(self.facts, generation)
        self._die_of(generation)
        return Decoded(self._frames(generation, _digest(_bytes(inputs["latents"])), control))

    def _frames(self, generation: Generation, key: bytes, control: Control) -> Iterator[np.ndarray]:
        for index in range(generation.num_frames):
            control.raise_if_cancelled()
            time.sleep(self._emulation.decode / generation.num_frames)
            colour = np.frombuffer(_digest(key, bytes([index % 256])), np.uint8)[:3]
            yield np.broadcast_to(colour, (1, generation.height, generation.width, 3)).copy()

    def _die_of(self, generation: Generation) -> None:
        """A request that takes its process along, as one that needs more memory than there is."""
        if self._emulation.fatal == STAGES[self._role] and FATAL in generation.prompt.split():
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def _bytes_out(self) -> dict[Role, int]:
        return {
            Role.ENCODER: self._emulation.embeddings,
            Role.DENOISER: self._emulation.latents,
            Role.DECODER: 0,
        }


def _latents_key(generation: Generation, inputs: Mapping[str, Value]) -> bytes:
    more = generation.seed, generation.num_inference_steps, generation.guidance_scale
    return _digest(_bytes(inputs["embeddings"]), str(more).encode())


def _stage(name: str) -> str:
    if name not in STAGES.values():
        raise ValueError(name)
    return name


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
