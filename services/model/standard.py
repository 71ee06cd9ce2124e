"""A role's part of a diffusers standard pipeline, for families without Modular blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image

from services.model.base import CacheStats, Control, Decoded, Lane, Outcome, Value
from services.model.batch import run_lanes
from services.model.cached_texts import cache_outputs
from services.model.device import computing, settle
from services.model.embedding_cache import EmbeddingCache
from services.model.families import StandardFamily
from services.model.lanes import Unlike, join, key_of, take
from services.model.request import check_images, check_request, check_tokens
from services.model.schedule import fresh_scheduler
from services.model.sizes import Sizes
from services.model.streaming import to_uint8
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

Own = Literal["prompt", "negative_prompt", "seed", "fps", "format", "quality"]
# What every request of a batch has for itself; the rest of it is one value for the loop.
OWN: tuple[Own, ...] = ("prompt", "negative_prompt", "seed", "fps", "format", "quality")


class StandardRole:
    """Implements ``services.model.base.RoleModel``: one result for a seed and a count of threads."""

    def __init__(
        self,
        role: Role,
        family: StandardFamily,
        pipeline: Any,
        facts: Model,
        device: torch.device,
        dtype: torch.dtype,
        cache: EmbeddingCache | None,
    ) -> None:
        """``pipeline`` has this role's components, and proxies for the others; ``cache`` is for the encoder's
        texts.
        """
        self.facts = facts
        self.pipeline = pipeline
        self._role = role
        self._family = family
        self.device = device
        self._scheduler = pipeline.scheduler
        pipeline.set_progress_bar_config(disable=True)
        self._sizes = Sizes(role, family, pipeline, facts, dtype, family.tokens, frozenset())
        self.largest_output_bytes = self._sizes.largest_output_bytes
        self.largest_input_bytes = self._sizes.largest_input_bytes
        self.output_bytes = self._sizes.output_bytes
        self._cache = cache
        if cache is not None:
            cache_outputs(pipeline.components, family.texts, cache)

    @torch.no_grad()
    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        control.raise_if_cancelled()
        with computing(self.device):
            if self._role is Role.ENCODER:
                self._check(generation)
                check_images(self.facts, generation, images)
                tokens = self._sizes.extent(generation).tokens
                return self._family.encode(self.pipeline, generation, images, tokens)
            return self._denoise([generation], self._open(generation, inputs), control)

    def batch_key(self, generation: Generation, inputs: Mapping[str, Value]) -> Hashable:
        if self._role is not Role.DENOISER or not self._family.batches:
            return None
        same = Generation()
        same.CopyFrom(generation)
        for name in OWN:
            same.ClearField(name)
        try:
            return same.SerializeToString(deterministic=True), key_of(inputs)
        except Unlike:
            return None

    @torch.no_grad()
    def run_batch(self, lanes: Sequence[Lane]) -> list[Outcome]:
        with computing(self.device):
            return run_lanes(lanes, lambda lane: self._open(lane.generation, lane.inputs), self._run_lanes)

    def _run_lanes(self, lanes: list[Lane], opened: list[Any], control: Control) -> list[dict[str, Value]]:
        joined = join(opened)
        opened.clear()  # one copy is enough
        made = self._denoise([lane.generation for lane in lanes], joined, control)
        return [take(made, place, len(lanes), made) for place in range(len(lanes))]

    def _open(self, generation: Generation, inputs: Mapping[str, Value]) -> dict[str, Any]:
        self._check(generation)
        return self._received(inputs, self._family.crossing(generation))

    def _check(self, generation: Generation) -> None:
        check_request(self.facts, generation)
        check_tokens(generation, self._family.tokens)

    def _denoise(
        self, generations: Sequence[Generation], values: Mapping[str, Value], control: Control
    ) -> dict[str, Value]:
        """Of all lanes of ``values``, whose requests differ in what is their ``OWN`` alone."""
        generation = generations[0]
        shift = generation.flow_shift if generation.HasField("flow_shift") else None
        self.pipeline.scheduler = fresh_scheduler(self._scheduler, shift)
        generators = [torch.Generator("cpu").manual_seed(lane.seed) for lane in generations]
        steps = _Steps(control, generation.num_inference_steps, self.device)
        try:
            return self._family.denoise(self.pipeline, generation, values, generators, steps)
        finally:
            self.pipeline.scheduler = self._scheduler  # that of the run keeps the latents of its last steps

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        check_request(self.facts, generation)
        expected = self._family.latents(self.pipeline, self._sizes.extent(generation))
        with computing(self.device):
            values = self._received(inputs, dict.fromkeys(expected, True))
        for name, spec in expected.items():
            shape = tuple(values[name].shape)
            if shape != spec.shape:
                raise ValueError(f"{name!r} have the shape {shape}, the request needs {spec.shape}")
        return Decoded(self._frames(values["latents"], control))

    def cache_stats(self) -> CacheStats | None:
        return self._cache.stats() if self._cache is not None else None

    def _frames(self, latents: torch.Tensor, control: Control) -> Iterator[np.ndarray]:
        assert self._family.stream is not None
        control.raise_if_cancelled()
        with computing(self.device):
            for chunk in self._family.stream(self.pipeline, latents):
                yield to_uint8(chunk)
                control.raise_if_cancelled()

    def _received(self, inputs: Mapping[str, Value], crossing: Mapping[str, bool]) -> dict[str, Any]:
        """Copies on this role's device: inputs may be views of memory that is reused after the run."""
        missing = sorted(name for name, needed in crossing.items() if needed and inputs.get(name) is None)
        if missing:
            raise ValueError(f"the {self._role.value} needs {', '.join(map(repr, missing))}, received none")
        extra = sorted(inputs.keys() - crossing.keys())
        if extra:
            raise ValueError(f"the {self._role.value} received {', '.join(map(repr, extra))}, for nothing")
        return {
            name: value.to(self.device, copy=True)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }


class _Steps:
    """Progress after each step, and a place to stop before the next."""

    def __init__(self, control: Control, total: int, device: torch.device) -> None:
        self._control = control
        self._total = total
        self._device = device

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        settle(self._device)
        self._control.progress(step + 1, self._total)
        if step + 1 < self._total:
            self._control.raise_if_cancelled()
        return {}
