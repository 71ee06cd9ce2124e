"""Between a pipeline's state and the values that cross from role to role.

Values go by their own names. A generator goes as its state, so that a later role draws on where an earlier
one stopped; groups of names (``PipelineState.kwargs_mapping``) go along where a later role asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from diffusers.modular_pipelines import PipelineState

from services.model.base import Value
from services.model.split import Cut
from services.role import Role
from triptych_proto.control_pb2 import Generation

GENERATOR = "generator"  # the name by which blocks ask for it
GENERATOR_STATE = "__generator_state__"
GROUPS = "__groups__"


def request_values(generation: Generation) -> dict[str, Any]:
    """What a request itself says, by the names that blocks give it."""
    return {
        "prompt": generation.prompt,
        "negative_prompt": generation.negative_prompt or None,
        "height": generation.height,
        "width": generation.width,
        "num_frames": generation.num_frames,
        "num_inference_steps": generation.num_inference_steps,
    }


def check_received(role: Role, cut: Cut, values: Mapping[str, Value]) -> None:
    """ValueError names what ``role`` misses, or what it was given that no role from here on asks for."""
    missing = sorted(name for name in cut.required if values.get(name) is None)
    if missing:
        raise ValueError(f"the {role.value} needs {_quoted(missing)}, received {_quoted(sorted(values))}")
    groups = cast("Mapping[str, list[str]]", values.get(GROUPS, {}))
    grouped = {name for group in groups.values() for name in group}
    extra = sorted(values.keys() - cut.names - grouped - {GENERATOR_STATE, GROUPS})
    if extra:
        raise ValueError(f"the {role.value} received {_quoted(extra)}, which nothing from there on asks for")


def open_state(
    generation: Generation,
    values: Mapping[str, Value],
    asked: Iterable[str],
    device: torch.device,
    casts: Mapping[str, torch.dtype],
) -> PipelineState:
    """The state a role starts from: what it received, then what the request says.

    Tensors are copied to ``device`` (``values`` may be views of memory that is reused after the run), those
    named in ``casts`` into that dtype.
    """
    state = PipelineState()
    for name, value in values.items():
        if name not in (GENERATOR_STATE, GROUPS):
            state.set(name, _copied(value, device, casts.get(name)))
    state.kwargs_mapping.update(cast("Mapping[str, list[str]]", values.get(GROUPS, {})))
    given = {**request_values(generation), GENERATOR: _generator(generation, values.get(GENERATOR_STATE))}
    for name in asked:
        if name in given and name not in state.values:
            state.set(name, given[name])
    return state


def hand_on(
    role: Role, cut: Cut, state: PipelineState, generation: Generation, received: Mapping[str, Value]
) -> dict[str, Value]:
    """What later roles ask for and cannot read from the request. ValueError names what is not there."""
    told = request_values(generation)
    groups = {group: names for group, names in state.kwargs_mapping.items() if group in cut.groups}
    names = cut.names | {name for group in groups.values() for name in group}
    values: dict[str, Value] = {
        name: value
        for name, value in state.values.items()
        if name in names - {GENERATOR} and (name in received or name not in told or value != told[name])
    }
    missing = sorted(name for name in cut.required if values.get(name) is None)
    if missing:
        raise ValueError(f"the {role.value} made no {_quoted(missing)}, which a later role needs")
    if groups:
        values[GROUPS] = cast("Value", groups)
    generator = state.values.get(GENERATOR)
    if generator is not None and GENERATOR in cut.names:
        values[GENERATOR_STATE] = generator.get_state()
    return values


def _generator(generation: Generation, state: Value) -> torch.Generator:
    """On the CPU wherever the models are: noise must not depend on the device."""
    generator = torch.Generator("cpu")
    if isinstance(state, torch.Tensor):
        generator.set_state(state.clone())
    else:
        generator.manual_seed(generation.seed)
    return generator


def _copied(value: Value, device: torch.device, dtype: torch.dtype | None) -> Value:
    if isinstance(value, torch.Tensor):
        return value.to(device=device, dtype=dtype or value.dtype, copy=True)
    if isinstance(value, list):
        return [_copied(item, device, dtype) for item in value]
    if isinstance(value, tuple):
        return tuple(_copied(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item, device, dtype) for key, item in value.items()}
    return value


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
