"""HunyuanVideo 1.5 from an image: what diffusers' blocks lose is put right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from deploy.tiny import hunyuan
from services.model import open_model
from services.role import Role
from tests.services.model.fused import Fused
from tests.services.model.support import OPTIONS, Recorder, Roles, generation, to_pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hunyuan.build_from_image(tmp_path_factory.mktemp("hunyuan") / "tiny")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def guider() -> Any:
    return diffusers.ClassifierFreeGuidance(guidance_scale=5.0)


def test_equals_the_standard_pipeline(folder: Path, image: Image.Image) -> None:
    request = generation(num_frames=5)
    roles = Roles(folder)
    values = roles.denoiser.run(request, roles.encoder.run(request, {}, Recorder(), [image]), Recorder())
    pipeline = diffusers.HunyuanVideo15ImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.guider = guider()
    made = pipeline(
        image=image,
        prompt=request.prompt,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    )
    np.testing.assert_array_equal(roles.decoded(request, values), to_pixels(made.frames[0]))


def test_diffusers_blocks_still_need_it(folder: Path, image: Image.Image) -> None:
    """When this fails, the correction can go."""
    fused = Fused(folder, "HunyuanVideo15ModularPipeline")
    recording = fused.run(generation(num_frames=5, num_inference_steps=1), {"guider": guider()}, [image])
    assert recording.encoded["image_embeds"].any()
    assert not recording.denoised["image_embeds"].any()


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 6.0), ({"guidance_scale": 4.5}, 4.5), ({"enabled": False}, 1.0)],
)
def test_the_folders_guider_tells_the_default(
    folder: Path, tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "guider" / "guider_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    facts = open_model(Role.DECODER, str(copy), **OPTIONS).facts
    assert facts.defaults.guidance_scale == scale
