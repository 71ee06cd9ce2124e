"""Where a model's text encoders look into the cache before they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from diffusers.modular_pipelines import PipelineState

from services.model.embedding_cache import EmbeddingCache, key_of

# What blocks read of an encoder's output: the field of this name, or these of its ``hidden_states``.
Part = str | tuple[int, ...]


def cache_outputs(
    components: Mapping[str, torch.nn.Module], read: Mapping[str, Part], cache: EmbeddingCache
) -> None:
    """From now on the components that ``read`` names remember what they made of which tokens.

    All that decides an output is an argument of the encoder: tokens with their template, length and mask. So
    prompts and negative prompts are shared, whichever was which, and so are texts that are cleaned to the
    same tokens. What nobody reads of an output is not kept (all hidden states would be hundreds of MB),
    and is not there on a miss either.
    """
    for name, part in read.items():
        components[name].forward = _remembering(name, components[name].forward, part, cache)


def _remembering(
    name: str, forward: Callable[..., Any], part: Part, cache: EmbeddingCache
) -> Callable[..., Any]:
    @functools.wraps(forward)
    def remembering(*args: Any, **kwargs: Any) -> Any:
        def compute() -> tuple[type, dict[str, Any]]:
            output = forward(*args, **kwargs)
            return type(output), _read(output, part)

        kind, fields = cache.computed(key_of(name, args, kwargs), compute)
        return kind(**fields)

    return remembering


def _read(output: Any, part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {part: output[part]}
    states = [None] * len(output.hidden_states)
    for layer in part:
        states[layer] = output.hidden_states[layer]
    return {"hidden_states": tuple(states)}


class CachedBlock:
    """Stands in the place of a block: what it made of equal inputs is not made again.

    For blocks that put prompt and negative prompt through a model together, of which the last bit depends on
    the company: here they are remembered as a pair.
    """

    def __init__(self, block: Any, wanted: Collection[str], cache: EmbeddingCache) -> None:
        """Of the block's outputs those ``wanted`` are kept, and only these come out."""
        self._block = block
        self._cache = cache
        self._inputs = [parameter.name for parameter in block.inputs if parameter.name]
        self._groups = {
            output.name: output.kwargs_type for output in block.intermediate_outputs if output.name in wanted
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, components: Any, state: PipelineState) -> Any:
        inputs = {name: state.get(name) for name in self._inputs}

        def compute() -> dict[str, Any]:
            inner = PipelineState()
            inner.values.update(inputs)
            self._block(components, inner)
            return {name: inner.values[name] for name in self._groups if name in inner.values}

        for name, value in self._cache.computed(key_of(inputs), compute).items():
            state.set(name, value, self._groups[name])
        return components, state
