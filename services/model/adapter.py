"""A role's part of a diffusers modular pipeline, of any family."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from PIL.Image import Image

from services.model import state
from services.model.base import CacheStats, Control, Decoded, Lane, Outcome, Value
from services.model.batch import run_lanes
from services.model.cached_texts import CachedBlock, cache_outputs
from services.model.device import computing
from services.model.embedding_cache import EmbeddingCache
from services.model.families import ModularFamily
from services.model.lanes import Unlike, frozen, guider_key, join_guiders, join_states, key_of, take_state
from services.model.request import (
    check_aspect,
    check_images,
    check_request,
    check_side,
    check_steps,
    check_tokens,
)
from services.model.schedule import fresh_scheduler, least_steps
from services.model.sizes import Sizes
from services.model.split import ROLES, cut_after, split
from services.model.steps import StepHook
from services.model.streaming import slices, to_uint8
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model


class ModularRole:
    """Implements ``services.model.base.RoleModel``: one result for a seed and a count of threads."""

    def __init__(
        self,
        role: Role,
        family: ModularFamily,
        pipeline: Any,
        blocks: Any,
        facts: Model,
        device: torch.device,
        dtype: torch.dtype,
        cache: EmbeddingCache | None,
    ) -> None:
        """``pipeline`` has this role's components loaded and proxies for the others; it runs the role's part
        of ``blocks``, which are the whole model's. ``cache`` is for the encoder's texts.
        """
        self.facts = facts
        self.pipeline = pipeline
        self._role = role
        self._family = family
        self.device = device
        parts = split(blocks)
        self._blocks = parts[role]
        self._asked = [parameter.name for parameter in self._blocks.inputs if parameter.name]
        # Run together, the first block that names an input decides its default for all.
        self._defaults = {parameter.name: parameter.default for parameter in blocks.inputs if parameter.name}
        self._defaults |= family.inputs
        position = ROLES.index(role)
        self._arriving = cut_after(parts, ROLES[position - 1]) if position else None
        self._leaving = cut_after(parts, role)
        self._cache = cache
        if cache is not None:
            self._remember_texts(cache)
        self._casts = dict.fromkeys(family.embeddings, dtype) if role is Role.DENOISER else {}
        self._negatives = _negatives(parts, role)
        self._steps = StepHook(self._blocks, device)
        self._scheduler = getattr(pipeline, "scheduler", None)
        self._tokens: int = self._defaults.get("max_sequence_length") or 0
        self._sizes = Sizes(role, family, pipeline, facts, dtype, self._tokens, _generator_senders(parts))
        self.largest_output_bytes = self._sizes.largest_output_bytes
        self.largest_input_bytes = self._sizes.largest_input_bytes
        self.output_bytes = self._sizes.output_bytes

    # ---- runs

    def run(
        self,
        generation: Generation,
        inputs: Mapping[str, Value],
        control: Control,
        images: Sequence[Image] = (),
    ) -> dict[str, Value]:
        with computing(self.device):
            pipeline_state = self._open(generation, inputs, images)
            self._run_blocks([generation], pipeline_state, control)
            return self._hand_on(pipeline_state, generation, inputs)

    def batch_key(self, generation: Generation, inputs: Mapping[str, Value]) -> Hashable:
        if self._role is not Role.DENOISER or not self._family.batches:
            return None
        told = {**self._defaults, **state.request_values(generation)}
        crossed = {name: inputs[name] for name in inputs if name != state.GENERATOR_STATE}
        try:
            return (
                frozen({name: told[name] for name in self._asked if name in told}),
                generation.flow_shift if generation.HasField("flow_shift") else None,
                guider_key(self._family.guiders(self._role, generation)),
                key_of(crossed, self._family.padded),
            )
        except Unlike:
            return None

    def run_batch(self, lanes: Sequence[Lane]) -> list[Outcome]:
        with computing(self.device):
            return run_lanes(lanes, lambda lane: self._open(lane.generation, lane.inputs), self._run_lanes)

    def _run_lanes(self, lanes: list[Lane], opened: list[Any], control: Control) -> list[dict[str, Value]]:
        each = (state.GENERATOR,)
        joined = join_states(opened, each, self._family.padded)
        opened.clear()  # one copy is enough
        self._run_blocks([lane.generation for lane in lanes], joined, control)
        crossing = state.crossing(joined, self._leaving)
        made = []
        for place, lane in enumerate(lanes):
            taken = take_state(joined, place, len(lanes), crossing, each)
            made.append(self._hand_on(taken, lane.generation, lane.inputs))
        return made

    def _hand_on(
        self, pipeline_state: Any, generation: Generation, inputs: Mapping[str, Value]
    ) -> dict[str, Value]:
        return state.hand_on(
            self._role, self._leaving, pipeline_state, generation, inputs, defaults=self._defaults
        )

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        with computing(self.device):
            pipeline_state = self._open(generation, inputs)
            size = self._size(generation, pipeline_state)
            self._check_latents(generation, pipeline_state, size)
            if self._family.stream is not None:
                return Decoded(self._stream(pipeline_state.get("latents"), control), size=size)
            if self._family.listen is None:
                return Decoded(self._frames(generation, pipeline_state, control), size=size)
            # A writer must know the sound before it asks for the first frame.
            frames = self._decode_at_once(generation, pipeline_state, control)
            return Decoded(slices(frames), self._family.listen(self.pipeline, pipeline_state.values), size)

    def _stream(self, latents: torch.Tensor, control: Control) -> Iterator[np.ndarray]:
        assert self._family.stream is not None
        control.raise_if_cancelled()
        with computing(self.device):
            for chunk in self._family.stream(self.pipeline, latents):
                yield to_uint8(chunk)
                control.raise_if_cancelled()

    def _frames(self, generation: Generation, pipeline_state: Any, control: Control) -> Iterator[np.ndarray]:
        with computing(self.device):
            decoded = self._decode_at_once(generation, pipeline_state, control)
        for frames in slices(decoded):
            yield frames
            control.raise_if_cancelled()

    def _decode_at_once(self, generation: Generation, pipeline_state: Any, control: Control) -> np.ndarray:
        """(n, height, width, 3) in [0, 1]."""
        control.raise_if_cancelled()
        self._run_blocks([generation], pipeline_state, control)
        control.raise_if_cancelled()
        made = pipeline_state.values
        return np.asarray(made["images"] if self._family.output == "image" else made["videos"][0])

    def _run_blocks(self, generations: Sequence[Generation], pipeline_state: Any, control: Control) -> None:
        """For all lanes of the state, which are alike in all that is one value for a loop.

        Guiders and scheduler are of this run alone: both keep in themselves how far a run has come.
        """
        known = self.pipeline.component_names
        generation = generations[0]
        guiders = join_guiders([self._family.guiders(self._role, lane) for lane in generations])
        self.pipeline.update_components(**{name: guiders[name] for name in guiders if name in known})
        if self._scheduler is not None:
            shift = generation.flow_shift if generation.HasField("flow_shift") else None
            self.pipeline.scheduler = fresh_scheduler(self._scheduler, shift)
        self._check_negatives(pipeline_state)
        self._steps.control = control
        try:
            self._blocks(self.pipeline, pipeline_state)
        finally:
            self._steps.control = None
            if self._scheduler is not None:  # that of the run keeps the latents of its last steps
                self.pipeline.scheduler = self._scheduler

    def cache_stats(self) -> CacheStats | None:
        return self._cache.stats() if self._cache is not None else None

    def _remember_texts(self, cache: EmbeddingCache) -> None:
        cache_outputs(self.pipeline.components, self._family.texts, cache)
        if name := self._family.cached_block:
            inner = self._blocks.sub_blocks
            later = list(inner)[list(inner).index(name) + 1 :]
            asked = {parameter.name for block in later for parameter in inner[block].inputs}
            inner[name] = CachedBlock(inner[name], asked | self._leaving.names, cache)

    # ---- checks

    def _open(self, generation: Generation, inputs: Mapping[str, Value], images: Sequence[Image] = ()) -> Any:
        check_request(self.facts, generation)
        if self._scheduler is not None:
            check_steps(generation, least_steps(self._scheduler.config))
        check_side(generation, self._family.least_side)
        check_tokens(generation, self._tokens, self._family.tokens_multiple(self.pipeline))
        if self._role is Role.ENCODER:
            check_images(self.facts, generation, images, self._family.check_image)
            if self._family.keeps_aspect:
                check_aspect(self.facts, generation, images)
        if self._arriving is not None:
            state.check_received(self._role, self._arriving, inputs)
        return state.open_state(
            generation,
            inputs,
            self._asked,
            self.device,
            self._casts,
            images=images,
            defaults=self._defaults,
        )

    def _check_negatives(self, pipeline_state: Any) -> None:
        """A guider that misses them goes on without guidance, in silence."""
        if self._role is not Role.DENOISER:
            return
        components = self.pipeline.components.values()
        if any(isinstance(part, BaseGuidance) and part.num_conditions > 1 for part in components):
            missing = sorted(name for name in self._negatives if pipeline_state.get(name) is None)
            if missing:
                raise ValueError(f"the {self._role.value} needs {', '.join(missing)} to guide, received none")

    def _size(self, generation: Generation, pipeline_state: Any) -> tuple[int, int]:
        """Width and height, which crossed if a reference image has changed them."""
        width, height = pipeline_state.get("width"), pipeline_state.get("height")
        return width or generation.width, height or generation.height

    def _check_latents(self, generation: Generation, pipeline_state: Any, size: tuple[int, int]) -> None:
        width, height = size
        extent = replace(self._sizes.extent(generation), width=width, height=height)
        for name, spec in self._family.latents(self.pipeline, extent).items():
            shape = tuple(pipeline_state.get(name).shape)
            if shape != spec.shape:
                raise ValueError(f"{name!r} have the shape {shape}, the request needs {spec.shape}")


def _generator_senders(parts: Mapping[Role, Any]) -> frozenset[Role]:
    """Roles that may have drawn from the generator before others do."""
    askers = [role for role in ROLES if any(p.name == state.GENERATOR for p in parts[role].inputs)]
    if not askers:
        return frozenset()
    first, last = ROLES.index(askers[0]), ROLES.index(askers[-1])
    return frozenset(ROLES[first:last])


def _negatives(parts: Mapping[Role, Any], role: Role) -> frozenset[str]:
    """What earlier roles make for guidance and ``role`` asks for."""
    earlier = ROLES[: ROLES.index(role)]
    made = {output.name for part in earlier for output in parts[part].intermediate_outputs}
    asked = {parameter.name for parameter in parts[role].inputs}
    return frozenset(name for name in made & asked if name.startswith("negative_"))
