"""LTX-2: a sound track beside the frames, and a dtype that is handed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy.tiny import ltx2
from services.model import open_model
from services.model.base import InvalidRequest
from services.role import Role
from tests.services.model.support import OPTIONS, Recorder, Roles, generation
from transfer.manifest import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ltx2.build(tmp_path_factory.mktemp("ltx2") / "tiny")


@pytest.fixture(scope="module")
def roles(folder: Path) -> Roles:
    return Roles(folder)


def test_a_denoiser_works_in_its_own_dtype(folder: Path, roles: Roles) -> None:
    request = generation(num_frames=9, num_inference_steps=2, guidance_scale=1.0)
    embeddings = roles.encoder.run(request, {}, Recorder())
    assert embeddings["dtype"] is torch.float32
    low = open_model(Role.DENOISER, str(folder), dtype="bfloat16", **OPTIONS)
    rounded = {
        name: value.to(torch.bfloat16)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in embeddings.items()
    }
    made = low.run(request, embeddings, Recorder())
    assert made["dtype"] is torch.bfloat16
    expected = low.run(request, rounded | {"dtype": torch.bfloat16}, Recorder())
    for name in ("latents", "audio_latents"):
        torch.testing.assert_close(made[name], expected[name], rtol=0, atol=0)
    decoded = roles.decoder.decode(request, made, Recorder())
    assert decoded.sound is not None and decoded.sound.samples.shape[0] == 2


@pytest.mark.parametrize("fps", [1.0, 7.3, 60.0])
def test_the_length_of_the_sound_is_known_before_the_run(roles: Roles, fps: float) -> None:
    request = generation(num_frames=9, num_inference_steps=2, guidance_scale=1.0, fps=fps)
    made = roles.latents(request)
    assert pack(made).nbytes <= roles.denoiser.output_bytes(request) <= roles.denoiser.largest_output_bytes()
    sound = roles.decoder.decode(request, made, Recorder()).sound
    assert sound is not None and sound.rate == 24000
    assert sound.samples.shape[1] / sound.rate == pytest.approx(9 / fps, abs=0.1)


def test_latents_of_another_length_are_refused(roles: Roles) -> None:
    made = roles.latents(generation(num_frames=9, num_inference_steps=2, guidance_scale=1.0, fps=8))
    with pytest.raises(ValueError, match="'audio_latents' have the shape"):
        roles.decoded(generation(num_frames=9, fps=30), made)


def test_a_schedule_of_one_step_is_refused(roles: Roles) -> None:
    """It would have no numbers in it."""
    request = generation(num_frames=9, num_inference_steps=1)
    with pytest.raises(InvalidRequest, match="num_inference_steps is 1, expected at least 2"):
        roles.latents(request)
