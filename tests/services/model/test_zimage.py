"""Z-Image counts guidance from 0, and its scale means what it means in the standard pipeline."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from deploy.tiny import zimage
from services.model import open_model
from services.role import Role
from tests.services.model.support import OPTIONS, Roles, generation, to_pixels


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 3.0])
def test_close_to_the_standard_pipeline(tmp_path: Path, guidance_scale: float) -> None:
    """Which adds the same numbers in another order."""
    folder = zimage.build(tmp_path / "tiny")
    request = generation(num_frames=1, guidance_scale=guidance_scale, negative_prompt="rain")
    pipeline = diffusers.ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    )
    difference = Roles(folder).frames(request).astype(int) - to_pixels(made.images)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("given", "most"), [(None, 1024 * 1024), (4096, 4096)])
def test_what_it_makes_by_default_is_within_the_usual_limit(
    tmp_path: Path, given: int | None, most: int
) -> None:
    """1024 x 1024 pixels, more than most videos have."""
    folder = zimage.build(tmp_path / "tiny")
    (folder / "triptych.json").unlink()
    facts = open_model(Role.DECODER, str(folder), max_pixels=given, **OPTIONS).facts
    assert (facts.defaults.width, facts.defaults.height, facts.max_pixels) == (1024, 1024, most)
