"""Tensors of several runs side by side: a batch in dimension 0, what may lie in it, and the way back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.modular_pipelines import PipelineState


class Unlike(Exception):
    """A value that has no place in a batch."""


def key_of(values: Mapping[str, Any], padded: Mapping[str, str] | None = None) -> Hashable:
    """Equal for values that can be joined. Raises Unlike if they can be joined with none.

    ``padded`` names tensors (1, tokens, ...) whose length may differ, each with its mask (1, tokens).
    """
    free = _lengths(values, padded or {})
    return tuple((name, _key(values[name], name in free)) for name in sorted(values))


def _key(value: Any, any_length: bool = False) -> Hashable:
    if isinstance(value, torch.Tensor):
        if not value.ndim or value.shape[0] != 1:
            raise Unlike
        shape: tuple[int | None, ...] = tuple(value.shape[1:])
        return str(value.dtype), (None, *shape[1:]) if any_length else shape
    return frozen(value)


def frozen(value: Any) -> Hashable:
    """Equal for equal values. Raises Unlike for a tensor, whose meaning inside of others is unknown."""
    if isinstance(value, Mapping):
        return tuple((name, frozen(value[name])) for name in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    if isinstance(value, torch.Tensor):
        raise Unlike
    return type(value).__name__, str(value) if isinstance(value, torch.dtype) else value


def _lengths(values: Mapping[str, Any], padded: Mapping[str, str]) -> set[str]:
    """Names of the tensors whose length may differ: those that brought their masks."""
    names: set[str] = set()
    for name, mask in padded.items():
        if isinstance(values.get(name), torch.Tensor) and isinstance(values.get(mask), torch.Tensor):
            names |= {name, mask}
    return names


# ---- there and back


def join(values: Sequence[Mapping[str, Any]], padded: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Lanes of equal ``key_of`` side by side; of what is no tensor, the first's."""
    free = _lengths(values[0], padded or {})
    joined = dict(values[0])
    for name, value in values[0].items():
        if isinstance(value, torch.Tensor):
            tensors = [lane[name] for lane in values]
            joined[name] = torch.cat(_of_one_length(tensors) if name in free else tensors)
    return joined


def _of_one_length(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """(1, tokens, ...) each: zeros behind the shorter ones, which their masks hide."""
    longest = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([t, t.new_zeros(1, longest - t.shape[1], *t.shape[2:])], dim=1)
        if t.shape[1] < longest
        else t
        for t in tensors
    ]


def take(values: Mapping[str, Any], place: int, count: int, names: Iterable[str]) -> dict[str, Any]:
    """The lane at ``place`` of ``count``: all of ``values``, of the tensors among ``names`` its part."""
    taken = dict(values)
    for name in names:
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            if not value.ndim or value.shape[0] != count:
                shape = tuple(value.shape)
                raise ValueError(
                    f"{name!r} of a batch of {count} have the shape {shape}, expected a lane each"
                )
            taken[name] = value[place : place + 1]
    return taken


def join_states(
    states: Sequence[PipelineState], each: Iterable[str], padded: Mapping[str, str]
) -> PipelineState:
    """Of the names in ``each``, which are no tensors, a list with every lane's."""
    joined = PipelineState()
    joined.values.update(join([state.values for state in states], padded))
    joined.kwargs_mapping.update({group: list(names) for group, names in states[0].kwargs_mapping.items()})
    for name in each:
        if name in joined.values:
            joined.values[name] = [state.values[name] for state in states]
    return joined


def take_state(
    joined: PipelineState, place: int, count: int, names: Iterable[str], each: Iterable[str]
) -> PipelineState:
    """The lane at ``place``, once blocks have worked on what ``join_states`` made."""
    state = PipelineState()
    state.values.update(take(joined.values, place, count, names))
    state.kwargs_mapping.update(joined.kwargs_mapping)
    for name in each:
        if name in state.values:
            state.values[name] = state.values[name][place]
    return state


# ---- guidance


def guider_key(guiders: Mapping[str, Any]) -> Hashable:
    """Equal for guiders that can be joined; the scale of classifier-free guidance may differ."""
    return tuple(
        (name, type(guider).__name__, guider.num_conditions, frozen(_settings(guider)))
        for name, guider in sorted(guiders.items())
    )


def _settings(guider: Any) -> dict[str, Any]:
    scale = {"guidance_scale"} if type(guider) is ClassifierFreeGuidance else set()
    return {name: v for name, v in guider.config.items() if name not in scale and not name.startswith("_")}


def join_guiders(guiders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Guiders of equal ``guider_key`` as one of each name."""
    joined = dict(guiders[0])
    for name, first in joined.items():
        each = [lane[name] for lane in guiders]
        if type(first) is ClassifierFreeGuidance and len({guider.guidance_scale for guider in each}) > 1:
            joined[name] = LaneGuidance(each)
    return joined


class LaneGuidance(ClassifierFreeGuidance):  # type: ignore[misc]
    """Classifier-free guidance by a guider for each lane. All lanes are guided, or none is."""

    def __init__(self, guiders: Sequence[ClassifierFreeGuidance]) -> None:
        super().__init__(guidance_scale=guiders[0].guidance_scale, **_settings(guiders[0]))
        self._guiders = guiders

    def set_state(self, *state: Any, **named: Any) -> None:
        for guider in self._guiders:
            guider.set_state(*state, **named)
        super().set_state(*state, **named)

    def forward(self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None) -> GuiderOutput:
        """Each as alone, by a number: a tensor of scales would round otherwise in half precision."""
        if pred_uncond is None:
            return super().forward(pred_cond)
        each = [
            guider.forward(pred_cond[place : place + 1], pred_uncond[place : place + 1]).pred
            for place, guider in enumerate(self._guiders)
        ]
        return GuiderOutput(pred=torch.cat(each), pred_cond=pred_cond, pred_uncond=pred_uncond)
