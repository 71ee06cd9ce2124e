"""How many bytes cross between roles, known before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from services.model.families import Extent, Family, Spec
from services.model.request import LOWEST_FPS
from services.model.split import ROLES
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

PAYLOAD_ALIGNMENT = 64  # where tensors start in a slot
GENERATOR_STATE_BYTES = 5056  # of a generator on the CPU, which goes along when it has been drawn from


class Sizes:
    """Upper bounds for a role, within its limits."""

    def __init__(
        self,
        role: Role,
        family: Family,
        pipeline: Any,
        facts: Model,
        dtype: torch.dtype,
        tokens: int,
        generators: frozenset[Role],
    ) -> None:
        """``tokens`` is the longest prompt; ``generators`` are the roles that may hand on a generator."""
        self._role = role
        self._family = family
        self._pipeline = pipeline
        self._facts = facts
        self._dtype = dtype
        self._tokens = tokens
        self._generators = generators

    def largest_output_bytes(self) -> int:
        return self._bytes(self._role, self._largest(), self._dtype)

    def largest_input_bytes(self) -> int:
        position = ROLES.index(self._role)
        # Another role may run in another dtype: none is wider than float32.
        return self._bytes(ROLES[position - 1], self._largest(), torch.float32) if position else 0

    def output_bytes(self, generation: Generation) -> int:
        return self._bytes(self._role, self.extent(generation), self._dtype)

    def extent(self, generation: Generation) -> Extent:
        tokens = (
            generation.max_sequence_length if generation.HasField("max_sequence_length") else self._tokens
        )
        images = self._facts.max_images
        return Extent(
            generation.width, generation.height, generation.num_frames, generation.fps, tokens, images
        )

    def _largest(self) -> Extent:
        side = self._facts.spatial_multiple
        tiles = max(1, self._facts.max_pixels // side**2)
        frames, images = self._facts.max_frames, self._facts.max_images
        return Extent(tiles * side, side, frames, LOWEST_FPS, self._tokens, images)

    def _bytes(self, role: Role, extent: Extent, dtype: torch.dtype) -> int:
        if self._family.keeps_aspect:
            extent = self._widest(extent)
        if role is Role.ENCODER:
            crossing: Iterable[Spec] = self._family.encoded(self._pipeline, extent)
        elif role is Role.DENOISER:
            crossing = self._family.latents(self._pipeline, extent).values()
        else:
            return 0
        total = sum(_aligned(math.prod(s.shape) * (s.dtype or dtype).itemsize) for s in crossing)
        return total + (_aligned(GENERATOR_STATE_BYTES) if role in self._generators else 0)

    def _widest(self, extent: Extent) -> Extent:
        """Of the same area in another aspect. Both sides are rounded to pixels, then down to multiples: of
        one tile's width, half a pixel can be too much."""
        side = self._facts.spatial_multiple
        tiles = extent.width * extent.height / side**2
        tiles = math.floor(tiles * (side / (side - 0.5)) ** 2)
        return replace(extent, width=tiles * side, height=side)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT
