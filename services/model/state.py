"""Between a pipeline's state and the values that cross from role to role.

Values go by their own names. A generator goes as its state, so that a later role draws on where an earlier
one stopped; groups of names (``PipelineState.kwargs_mapping``) go along where a later role asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.modular_pipelines import PipelineState
from PIL.Image import Image

from services.model.base import Value
from services.model.request import OPTIONS
from services.model.split import Cut
from services.role import Role
from triptych_proto.control_pb2 import Generation

GENERATOR = "generator"  # the name by which blocks ask for it
GENERATOR_STATE = "__generator_state__"
GROUPS = "__groups__"


def request_values(generation: Generation, images: Sequence[Image] = ()) -> dict[str, Any]:
    """What a request itself says, by the names that blocks give it. What is left out is theirs to choose."""
    values: dict[str, Any] = {
        "prompt": generation.prompt,
        "negative_prompt": generation.negative_prompt or None,
        "height": generation.height,
        "width": generation.width,
        "num_frames": generation.num_frames,
        "frame_rate": generation.fps,
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
        "output_type": "np",
    }
    values |= {name: getattr(generation, name) for name in OPTIONS if generation.HasField(name)}
    if images:
        values["image"] = images[0] if len(images) == 1 else list(images)
    return values


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
    *,
    images: Sequence[Image] = (),
    defaults: Mapping[str, Any] | None = None,
) -> PipelineState:
    """The state a role starts from: what it received, then what the request says, then ``defaults``.

    Tensors are copied to ``device`` (``values`` may be views of memory that is reused after the run), those
    named in ``casts`` into that dtype.
    """
    state = PipelineState()
    for name, value in values.items():
        if name not in (GENERATOR_STATE, GROUPS):
            state.set(name, _copied(value, device, casts.get(name)))
    groups = cast("Mapping[str, list[str]]", values.get(GROUPS, {}))
    state.kwargs_mapping.update({group: list(names) for group, names in groups.items()})
    given = {
        **(defaults or {}),
        **request_values(generation, images),
        GENERATOR: _generator(generation, values.get(GENERATOR_STATE)),
    }
    for name in asked:
        if name in given and name not in state.values:
            state.set(name, given[name])
    return state


def hand_on(
    role: Role,
    cut: Cut,
    state: PipelineState,
    generation: Generation,
    received: Mapping[str, Value],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Value]:
    """What later roles ask for and cannot read from the request. ValueError names what is not there."""
    told = {**(defaults or {}), **request_values(generation)}
    groups = {group: list(dict.fromkeys(names)) for group, names in _groups(state, cut).items()}
    names = crossing(state, cut)
    values: dict[str, Value] = {
        name: value
        for name, value in state.values.items()
        if name in names - {GENERATOR} and (name in received or not _told(told, name, value))
    }
    missing = sorted(name for name in cut.required if values.get(name) is None)
    if missing:
        raise ValueError(f"the {role.value} made no {_quoted(missing)}, which a later role needs")
    if groups:
        values[GROUPS] = cast("Value", groups)
    generator = state.values.get(GENERATOR)
    if generator is not None and GENERATOR in cut.names:
        advanced = generator.get_state()
        if not torch.equal(advanced, _generator(generation, None).get_state()):
            values[GENERATOR_STATE] = advanced  # else the seed says as much
    elif GENERATOR_STATE in received and GENERATOR in cut.names:
        values[GENERATOR_STATE] = cast("torch.Tensor", received[GENERATOR_STATE]).clone()
    return values


def crossing(state: PipelineState, cut: Cut) -> frozenset[str]:
    """The names that later roles ask for, also as members of a group."""
    return cut.names | {name for names in _groups(state, cut).values() for name in names}


def _groups(state: PipelineState, cut: Cut) -> dict[str, list[str]]:
    return {group: names for group, names in state.kwargs_mapping.items() if group in cut.groups}


def _told(told: Mapping[str, Any], name: str, value: Any) -> bool:
    if name not in told or isinstance(value, torch.Tensor):
        return False
    return bool(value is told[name] or (type(value) is type(told[name]) and value == told[name]))


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
        kept = value.dtype if dtype is None or not value.is_floating_point() else dtype
        return value.to(device=device, dtype=kept, copy=True)
    if isinstance(value, torch.dtype):
        return dtype or value
    if isinstance(value, list):
        return [_copied(item, device, dtype) for item in value]
    if isinstance(value, tuple):
        return tuple(_copied(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item, device, dtype) for key, item in value.items()}
    return value


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
