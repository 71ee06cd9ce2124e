"""What a family of models has of its own: a row for the one adapter, or for that of standard pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance
from PIL.Image import Image

from services.model.base import Sound, Value
from services.model.cached_texts import Part
from services.model.folder import ModelFolder, ServingDefaults
from services.role import Role
from triptych_proto.control_pb2 import Generation

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """What decides how large a request's tensors are."""

    width: int
    height: int
    num_frames: int
    fps: float
    tokens: int  # of the prompt, at most
    images: int  # reference images


@dataclass(frozen=True)
class Spec:
    """A tensor that crosses."""

    shape: Shape
    dtype: torch.dtype | None = None  # None: that of the role's weights


@dataclass(frozen=True, kw_only=True)
class Family:
    """``Any`` is the pipeline of a role: what it does not hold, it has as a proxy with the same config."""

    name: str
    index_class: str  # the pipeline class that a model's index names
    matches: Callable[[ModelFolder], bool] = lambda folder: True  # tells models of one class apart
    refuses: Callable[[ModelFolder], str] = lambda folder: ""  # why a model is not covered, or nothing
    defaults: ServingDefaults
    output: str = "video"  # or "image"
    sound: bool = False
    images: tuple[int, int] = (0, 0)  # reference images, at least and at most
    keeps_aspect: bool = False  # the output has the area of the request and the aspect of the reference image
    negative_prompt: bool = True
    batches: bool = False  # requests of one shape may share a denoising loop: seen to give the same results
    options: frozenset[str] = frozenset()  # of Generation, beside those that blocks and configs tell
    float32: frozenset[str] = frozenset()  # components that are never loaded in less
    multiples: Callable[[Any], tuple[int, int]]  # spatial (of width and height), temporal (of num_frames - 1)
    encoded: Callable[[Any, Extent], list[Spec]]  # the largest tensors that the encoder hands on
    latents: Callable[[Any, Extent], dict[str, Spec]]  # all that the denoiser hands on, by name
    # Text encoders whose outputs are cached, and what is read of them.
    texts: Mapping[str, Part] = field(default_factory=dict)
    # Latents to chunks (1, 3, n, height, width) in [-1, 1], where the VAE can; else its blocks run at once.
    stream: Callable[[Any, torch.Tensor], Iterator[torch.Tensor]] | None = None


def classifier_free(role: Role, generation: Generation) -> dict[str, Any]:
    """One guider, the same in encoder and denoiser: negative embeddings are made only if they are used."""
    return {"guider": guider(generation.guidance_scale)}


def guider(scale: float) -> Any:
    """As in standard pipelines no scale up to 1 is guidance; the guider itself would interpolate below 1."""
    return ClassifierFreeGuidance(guidance_scale=max(scale, 1.0))


def classifier_free_at_last(role: Role, generation: Generation) -> dict[str, Any]:
    """Both embeddings, whatever the scale: some encoder blocks fail when they leave the negative ones out."""
    return {"guider": guider(5.0 if role is Role.ENCODER else generation.guidance_scale)}


def no_guiders(role: Role, generation: Generation) -> dict[str, Any]:
    """For models whose guidance is distilled into their weights."""
    return {}


@dataclass(frozen=True, kw_only=True)
class ModularFamily(Family):
    """A family that diffusers has Modular blocks for."""

    modular_pipeline: str  # its class in diffusers
    workflows: tuple[str, ...] = ()  # only what these need is loaded; none: all that the blocks name
    # What a role's blocks name but ask for nothing but config and buffers of.
    config_only: Mapping[Role, frozenset[str]] = field(default_factory=dict)
    least_side: int = 1  # of width and height
    # ValueError says why this reference image, of PIL, is not taken.
    check_image: Callable[[Any], None] = lambda image: None
    tokens_multiple: Callable[[Any], int] = lambda pipeline: 1  # of max_sequence_length
    # Corrects the whole model's blocks, where diffusers has an error.
    mend: Callable[[Any], None] = lambda blocks: None
    # What blocks are given beside the request.
    inputs: Mapping[str, Any] = field(default_factory=dict)
    # Guider components for a request. Always set: blocks run apart have other defaults than together.
    guiders: Callable[[Role, Generation], dict[str, Any]] = classifier_free
    # Inputs of the denoiser that take the dtype of its transformer; one that is a dtype becomes it.
    embeddings: frozenset[str] = frozenset({"prompt_embeds", "negative_prompt_embeds"})
    # A block of the encoder that is cached whole, because it mixes prompt and negative prompt.
    cached_block: str = ""
    # Inputs of the denoiser (1, tokens, ...) that can be made longer, with the masks (1, tokens) that tell.
    padded: Mapping[str, str] = field(default_factory=dict)
    # Of what the decoder's blocks made, by name.
    listen: Callable[[Any, Mapping[str, Any]], Sound] | None = None


Generators = list[torch.Generator]
# Called at the end of each step with the pipeline, the step from 0, the timestep and the pipeline's tensors.
StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class StandardFamily(Family):
    """A family that diffusers has no Modular blocks for: its standard pipeline, taken apart by hand."""

    holds: Mapping[Role, frozenset[str]]  # components
    tokens: int  # of the longest prompt
    # Of a request, its reference images and a length in tokens: all that crosses to the denoiser.
    encode: Callable[[Any, Generation, Sequence[Image], int], dict[str, Value]]
    # Of what crossed, with a generator for each lane: all that crosses to the decoder.
    denoise: Callable[[Any, Generation, Mapping[str, Value], Generators, StepEnd], dict[str, Value]]
    # Names of all that crosses to the denoiser for a request, and whether it must.
    crossing: Callable[[Generation], Mapping[str, bool]]
