"""What a request must be for a model to take it, whatever its family."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL.Image import Image

from services.model.base import InvalidRequest
from triptych_proto.control_pb2 import Generation, Model


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
    for name, value, most in (
        ("width * height", generation.width * generation.height, facts.max_pixels),
        ("num_frames", generation.num_frames, facts.max_frames),
        ("num_inference_steps", generation.num_inference_steps, facts.max_steps),
    ):
        if value > most:
            raise InvalidRequest(f"{name} is {value}, expected at most {most}")


def check_images(facts: Model, images: Sequence[Image]) -> None:
    """InvalidRequest says how many reference images this model takes."""
    if not facts.min_images <= len(images) <= facts.max_images:
        expected = f"{facts.min_images} to {facts.max_images}"
        raise InvalidRequest(f"input_reference: {len(images)} reference images, expected {expected}")
