"""A role's part of a diffusers modular pipeline, of any family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from services.model import state
from services.model.base import Control, Decoded, Limits, Value
from services.model.families import Family, Shape
from services.model.request import check_request
from services.model.split import ROLES, cut_after
from services.model.steps import StepHook
from services.model.streaming import to_uint8
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

PAYLOAD_ALIGNMENT = 64  # where tensors start in a slot


class ModularRole:
    """Implements ``services.model.base.RoleModel``: one result for a seed and a count of threads."""

    def __init__(
        self,
        role: Role,
        family: Family,
        pipeline: Any,
        parts: dict[Role, Any],
        facts: Model,
        limits: Limits,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """``pipeline`` runs ``parts[role]``, has this role's components loaded and proxies for the others."""
        self.facts = facts
        self.pipeline = pipeline
        self._role = role
        self._family = family
        self._limits = limits
        self._device = device
        self._dtype = dtype
        self._blocks = parts[role]
        self._asked = [parameter.name for parameter in self._blocks.inputs if parameter.name]
        position = ROLES.index(role)
        self._arriving = cut_after(parts, ROLES[position - 1]) if position else None
        self._leaving = cut_after(parts, role)
        self._casts = dict.fromkeys(family.embeddings, dtype) if role is Role.DENOISER else {}
        self._steps = StepHook(self._blocks)

    # ---- runs

    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        pipeline_state = self._open(generation, inputs)
        guiders = self._family.guiders(self._role, generation.guidance_scale)
        self.pipeline.update_components(**guiders)
        self._steps.control = control
        try:
            self._blocks(self.pipeline, pipeline_state)
        finally:
            self._steps.control = None
        return state.hand_on(self._role, self._leaving, pipeline_state, generation, inputs)

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        latents = self._open(generation, inputs).get("latents")
        expected = self._family.latents_shape(
            self.pipeline, generation.width, generation.height, generation.num_frames
        )
        if tuple(latents.shape) != expected:
            raise ValueError(f"'latents' have the shape {tuple(latents.shape)}, the request needs {expected}")
        return Decoded(self._frames(latents, control))

    def _frames(self, latents: torch.Tensor, control: Control) -> Iterator[np.ndarray]:
        control.raise_if_cancelled()
        for chunk in self._family.decode(self.pipeline, latents):
            yield to_uint8(chunk)
            control.raise_if_cancelled()

    # ---- sizes

    def largest_output_bytes(self) -> int:
        return self._largest(self._role, self._dtype.itemsize)

    def largest_input_bytes(self) -> int:
        position = ROLES.index(self._role)
        # Another role may run in another dtype: none is wider than float32.
        return self._largest(ROLES[position - 1], torch.float32.itemsize) if position else 0

    def output_bytes(self, generation: Generation) -> int:
        return self._bytes(
            self._role, self._dtype.itemsize, generation.width, generation.height, generation.num_frames
        )

    def _largest(self, role: Role, itemsize: int) -> int:
        side = self.facts.spatial_multiple
        tiles = max(1, self._limits.max_pixels // side**2)
        return self._bytes(role, itemsize, tiles * side, side, self._limits.max_frames)

    def _bytes(self, role: Role, itemsize: int, width: int, height: int, num_frames: int) -> int:
        if role is Role.ENCODER:
            return sum(_nbytes(shape, itemsize) for shape in self._family.embedding_shapes(self.pipeline))
        if role is Role.DENOISER:
            shape = self._family.latents_shape(self.pipeline, width, height, num_frames)
            return _nbytes(shape, torch.float32.itemsize)
        return 0

    # ---- helpers

    def _open(self, generation: Generation, inputs: Mapping[str, Value]) -> Any:
        check_request(self.facts, generation)
        if self._arriving is not None:
            state.check_received(self._role, self._arriving, inputs)
        return state.open_state(generation, inputs, self._asked, self._device, self._casts)


def _nbytes(shape: Shape, itemsize: int) -> int:
    return -(-math.prod(shape) * itemsize // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT
