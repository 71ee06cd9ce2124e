"""Folders that are no model, or not one that can be served: one clear line each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from services.model import ModelError, open_model
from services.model.folder import open_folder
from services.role import Role
from tests.services.model.support import OPTIONS, Recorder, generation


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(folder: Path | str, role: Role = Role.DENOISER, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(role, str(folder), **{**OPTIONS, **options})
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_such_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such folder"


def test_no_diffusers_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: no diffusers model: it has no model_index.json"


def test_an_index_that_is_no_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    assert f"{folder / 'model_index.json'}: " in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (
            "_class_name",
            "StableDiffusionPipeline",
            "StableDiffusionPipeline is not served, expected WanPipeline",
        ),
        ("boundary_ratio", 0.9, "its index has no transformer_2"),
        ("transformer", [None, None], "its index has no transformer"),
    ],
)
def test_models_that_are_not_served(folder: Path, key: str, value: object, reason: str) -> None:
    edit(folder / "model_index.json", lambda index: index.update({key: value}))
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("component", "key", "value", "reason"),
    [
        ("transformer", "pos_embed_seq_len", 514, "it goes from a first frame to a last one"),
        ("", "expand_timesteps", True, "it expands timesteps"),
    ],
)
def test_image_models_that_are_not_served(
    folder: Path, component: str, key: str, value: object, reason: str
) -> None:
    edit(folder / "model_index.json", lambda index: index.update({"_class_name": "WanImageToVideoPipeline"}))
    file = "config.json" if component else "model_index.json"
    edit(folder / component / file, lambda config: config.update({key: value}))
    assert f"this WanImageToVideoPipeline is not served: {reason}" in refusal(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert refusal(folder).startswith(f"{folder / 'transformer'}: cannot be loaded: ")
    (folder / "text_encoder" / "model.safetensors").unlink()
    assert refusal(folder, Role.ENCODER).startswith(f"{folder / 'text_encoder'}: cannot be loaded: ")


@pytest.mark.parametrize(
    ("role", "file", "tensor"),
    [
        (Role.DENOISER, "transformer/diffusion_pytorch_model.safetensors", "proj_out.bias"),
        (Role.ENCODER, "text_encoder/model.safetensors", "encoder.final_layer_norm.weight"),
    ],
)
def test_weights_that_lack_a_tensor(folder: Path, role: Role, file: str, tensor: str) -> None:
    """The libraries would go on with random numbers."""
    weights = load_file(folder / file)
    del weights[tensor]
    save_file(weights, folder / file, metadata={"format": "pt"})
    assert f"its weights lack 1 tensors, one is {tensor!r}" in refusal(folder, role)


def test_a_missing_config_of_another_role(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    assert refusal(folder).startswith(f"{folder / 'vae'}: no config there")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("wide", 1, "unknown key 'wide'"),
        ("width", "64", "width is '64', expected a positive int"),
        ("fps", 0, "fps is 0, expected a positive float"),
        ("width", 72, "width and height are multiples of 16"),
        ("num_frames", 6, "num_frames a multiple of 4 plus 1"),
    ],
)
def test_serving_defaults_that_cannot_be(folder: Path, key: str, value: object, reason: str) -> None:
    edit(folder / "triptych.json", lambda defaults: defaults.update({key: value}))
    assert reason in refusal(folder)


def test_without_serving_defaults_the_familys_hold(folder: Path) -> None:
    (folder / "triptych.json").unlink()
    defaults = open_model(Role.DECODER, str(folder), **OPTIONS).facts.defaults
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (832, 480, 81, 16.0)
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (50, 5.0)


def test_devices_and_dtypes_that_are_not_there(tiny_model: Path) -> None:
    assert refusal(tiny_model, device="toaster").startswith("device 'toaster' is not available: ")
    assert refusal(tiny_model, device="cuda:99").startswith("device 'cuda:99' is not available: ")
    assert refusal(tiny_model, dtype="int8").startswith("dtype 'int8' is unknown, expected auto, float32")


def test_a_folder_may_lack_the_weights_of_others(folder: Path, tiny_model: Path) -> None:
    for weights in (
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        (folder / weights).unlink()
    encoder = open_model(Role.ENCODER, str(folder), name="mine", **OPTIONS)
    assert encoder.facts.name == "mine"
    assert encoder.facts.fingerprint == open_folder(str(tiny_model)).fingerprint()
    assert encoder.run(generation(), {}, Recorder()).keys() == {"prompt_embeds", "negative_prompt_embeds"}


def test_the_fingerprint_is_of_configs_alone(folder: Path) -> None:
    before = open_folder(str(folder)).fingerprint()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(dict(reversed(index.items())), indent=9))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert open_folder(str(folder)).fingerprint() == before
    edit(folder / "scheduler" / "scheduler_config.json", lambda config: config.update(flow_shift=5.0))
    assert open_folder(str(folder)).fingerprint() != before


def test_multiples_come_from_the_configs(folder: Path) -> None:
    """A proxy that is not asked would leave the library's own guesses: 16 and 4."""
    edit(folder / "vae" / "config.json", lambda config: config.update(temperal_downsample=[True, True, True]))
    facts = open_model(Role.ENCODER, str(folder), **OPTIONS).facts
    assert (facts.spatial_multiple, facts.temporal_multiple) == (16, 8)


def test_an_unknown_hub_id_offline(tmp_path: Path) -> None:
    """In a process of its own: the hub's library reads its environment when it is imported."""
    code = (
        "from services.model import ModelError, open_model; from services.role import Role\n"
        "try: open_model(Role.DENOISER, 'nobody/nothing')\n"
        "except ModelError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.startswith("nobody/nothing: no such folder, and the model hub says: ")
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""
