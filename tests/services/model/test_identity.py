"""Three roles make bit for bit what the fused pipelines make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.services.model.support import (
    Recorder,
    Roles,
    fused_frames,
    generation,
    modular_frames,
    modular_pipeline,
)

SHAPES = [(64, 64, 1), (96, 64, 9), (64, 112, 5)]


@pytest.mark.parametrize("guidance_scale", [0.5, 1.0, 5.0])
@pytest.mark.parametrize(("width", "height", "num_frames"), SHAPES)
def test_equals_the_standard_pipeline(
    roles: Roles, fused: Any, width: int, height: int, num_frames: int, guidance_scale: float
) -> None:
    request = generation(width=width, height=height, num_frames=num_frames, guidance_scale=guidance_scale)
    frames = roles.frames(request)
    assert frames.shape == (num_frames, height, width, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 20, "frames without content would hide differences"
    np.testing.assert_array_equal(frames, fused_frames(fused, request))


@pytest.mark.parametrize(("width", "height", "num_frames"), SHAPES)
def test_equals_the_modular_pipeline(
    roles: Roles, modular: Any, width: int, height: int, num_frames: int
) -> None:
    request = generation(width=width, height=height, num_frames=num_frames, negative_prompt="rain")
    np.testing.assert_array_equal(roles.frames(request), modular_frames(modular, request))


def test_equals_the_modular_pipeline_in_bfloat16(tiny_model: Path) -> None:
    """Not the standard one: it alone does not round timesteps to bfloat16."""
    request = generation()
    expected = modular_frames(modular_pipeline(tiny_model, torch.bfloat16), request)
    np.testing.assert_array_equal(Roles(tiny_model, "bfloat16").frames(request), expected)


def test_a_denoiser_takes_embeddings_in_another_dtype(roles: Roles, tiny_model: Path) -> None:
    request = generation()
    embeddings = roles.encoder.run(request, {}, Recorder())
    low = Roles(tiny_model, "bfloat16").denoiser
    rounded = {name: value.to(torch.bfloat16) for name, value in embeddings.items()}  # type: ignore[union-attr]
    torch.testing.assert_close(
        low.run(request, embeddings, Recorder()), low.run(request, rounded, Recorder()), rtol=0, atol=0
    )


def test_what_a_request_says_shows(roles: Roles, fused: Any) -> None:
    base = roles.frames(generation())
    for change in (
        {"prompt": "a cat"},
        {"negative_prompt": "snow"},
        {"seed": 8},
        {"guidance_scale": 2.0},
        {"num_inference_steps": 2},
    ):
        request = generation(**change)
        frames = roles.frames(request)
        assert not np.array_equal(frames, base), change
        np.testing.assert_array_equal(frames, fused_frames(fused, request))
