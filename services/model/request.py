"""What a request must be for a model to take it, whatever its family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from PIL.Image import Image

from services.model.base import InvalidRequest
from triptych_proto.control_pb2 import Generation, Model

# What only some models have, as in Model.options.
Option = Literal["guidance_scale_2", "true_cfg_scale", "flow_shift", "max_sequence_length", "strength"]
OPTIONS: tuple[Option, ...] = (
    "guidance_scale_2",
    "true_cfg_scale",
    "flow_shift",
    "max_sequence_length",
    "strength",
)

LOWEST_FPS = 1.0  # of videos with sound: the lower, the longer


def check_request(facts: Model, generation: Generation) -> None:
    """InvalidRequest names the field that this model cannot serve."""
    for name in ("width", "height", "num_frames", "num_inference_steps"):
        if getattr(generation, name) < 1:
            raise InvalidRequest(f"{name} is 0, expected at least 1")
    for name in ("width", "height"):
        if getattr(generation, name) % facts.spatial_multiple:
            value = getattr(generation, name)
            raise InvalidRequest(f"{name} is {value}, expected a multiple of {facts.spatial_multiple}")
    if (generation.num_frames - 1) % facts.temporal_multiple:
        found, multiple = generation.num_frames, facts.temporal_multiple
        raise InvalidRequest(f"num_frames is {found}, expected a multiple of {multiple} plus 1")
    for name in ("guidance_scale", "fps"):
        if not math.isfinite(getattr(generation, name)):
            raise InvalidRequest(f"{name} is {getattr(generation, name)}, expected a number")
    if facts.sound and generation.fps < LOWEST_FPS:
        raise InvalidRequest(f"fps is {generation.fps}, expected at least {LOWEST_FPS:g}")
    for name, value, most in (
        ("width * height", generation.width * generation.height, facts.max_pixels),
        ("num_frames", generation.num_frames, facts.max_frames),
        ("num_inference_steps", generation.num_inference_steps, facts.max_steps),
    ):
        if value > most:
            raise InvalidRequest(f"{name} is {value}, expected at most {most}")
    if generation.negative_prompt and not facts.negative_prompt:
        raise InvalidRequest("negative_prompt means nothing to this model: its guidance is distilled")
    _check_options(facts, generation)


def check_steps(generation: Generation, least: int) -> None:
    """InvalidRequest for fewer steps than the schedule can have."""
    if generation.num_inference_steps < least:
        raise InvalidRequest(
            f"num_inference_steps is {generation.num_inference_steps}, expected at least {least}"
        )


def check_side(generation: Generation, least: int) -> None:
    """InvalidRequest for an output that is too narrow for the family."""
    for name, value in (("width", generation.width), ("height", generation.height)):
        if value < least:
            raise InvalidRequest(f"{name} is {value}, expected at least {least}")


def check_tokens(generation: Generation, most: int, multiple: int = 1) -> None:
    """InvalidRequest for a length of prompts that the family does not take."""
    found = generation.max_sequence_length
    if found > most:
        raise InvalidRequest(f"max_sequence_length is {found}, expected at most {most}")
    if found % multiple:
        raise InvalidRequest(f"max_sequence_length is {found}, expected a multiple of {multiple}")


def check_images(
    facts: Model,
    generation: Generation,
    images: Sequence[Image],
    check_image: Callable[[Image], None] = lambda image: None,
) -> None:
    """As ``check_request``, for what only the encoder is given."""
    least, most = facts.min_images, facts.max_images
    if not least <= len(images) <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise InvalidRequest(f"input_reference: {len(images)} reference images, expected {expected}")
    if generation.HasField("strength") and not images:
        raise InvalidRequest("strength says how far to leave a reference image, but there is none")
    for image in images:
        try:
            check_image(image)
        except ValueError as error:
            raise InvalidRequest(f"a reference image is not taken: {error}") from error


def check_aspect(facts: Model, generation: Generation, images: Sequence[Image]) -> None:
    """For outputs of the request's area in the aspect of the reference image: both sides must be there."""
    side = facts.spatial_multiple
    for image in images:
        width, height = generation.width, generation.height
        for _ in range(2):  # some blocks fit the size twice
            area, aspect = width * height, image.height / image.width
            height = round(math.sqrt(area * aspect)) // side * side
            width = round(math.sqrt(area / aspect)) // side * side
            if not (width and height):
                raise InvalidRequest(
                    f"a reference image of {image.width}x{image.height} pixels is too narrow for an output of"
                    f" {generation.width} * {generation.height} pixels in its aspect"
                )


def _check_options(facts: Model, generation: Generation) -> None:
    for name in OPTIONS:
        if not generation.HasField(name):
            continue
        if name not in facts.options:
            taken = ", ".join(facts.options) or "none"
            raise InvalidRequest(f"{name} is no option of this model, whose options are {taken}")
        if not math.isfinite(getattr(generation, name)):
            raise InvalidRequest(f"{name} is {getattr(generation, name)}, expected a number")
    if generation.HasField("flow_shift") and generation.flow_shift <= 0:
        raise InvalidRequest(f"flow_shift is {generation.flow_shift}, expected more than 0")
    if generation.HasField("max_sequence_length") and not generation.max_sequence_length:
        raise InvalidRequest("max_sequence_length is 0, expected at least 1")
    if generation.HasField("strength"):
        steps, strength = generation.num_inference_steps, generation.strength
        # As the pipelines count: with a strength of almost 0 no step is left.
        if not 0 < strength <= 1 or int(steps - steps * strength) >= steps:
            raise InvalidRequest(f"strength is {strength}, expected more than 0 and at most 1")
