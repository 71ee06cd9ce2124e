"""What a family cannot do is refused, with the name of the field; what is missing on the way, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deploy.tiny.table import MODELS
from services.model import ModelError, open_model
from services.model.base import InvalidRequest, RoleModel
from services.role import Role
from tests.services.model.support import OPTIONS, Recorder, generation
from transfer.manifest import pack

PICTURE = Image.new("RGB", (100, 75), "teal")
STILL = {"num_frames": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("families")
    names = ("flux", "flux2-klein", "wan-i2v", "qwen-image", "wan2.2-ti2v", "ltx-2")
    return {family: MODELS[family](parent / family, 0) for family in names}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, RoleModel]:
    return {family: opened(folders[family], Role.ENCODER) for family in folders}


def opened(folder: Path, role: Role) -> RoleModel:
    return open_model(role, str(folder), **OPTIONS)


@pytest.mark.parametrize(
    ("family", "fields", "images", "reason"),
    [
        ("flux", {**STILL, "true_cfg_scale": 3.0}, [], "true_cfg_scale is no option of this model, whose"),
        ("flux", {**STILL, "flow_shift": 3.0}, [], "flow_shift is no option"),  # it follows from the size
        ("flux", {**STILL, "negative_prompt": "rain"}, [], "negative_prompt means nothing"),
        ("flux", {"num_frames": 5}, [], "num_frames is 5, expected at most 1"),
        ("flux", STILL, [PICTURE] * 2, "2 reference images, expected 0 to 1"),
        ("flux", {**STILL, "strength": 0.5}, [], "strength says how far to leave a reference image"),
        ("flux", {**STILL, "strength": 1.5}, [PICTURE], "strength is 1.5"),
        ("flux", {**STILL, "strength": 1e-18}, [PICTURE], "strength is 1e-18"),
        (
            "flux",
            {**STILL, "max_sequence_length": 513},
            [],
            "max_sequence_length is 513, expected at most 512",
        ),
        ("flux", {**STILL, "max_sequence_length": 0}, [], "max_sequence_length is 0"),
        ("qwen-image", {**STILL, "true_cfg_scale": float("inf")}, [], "true_cfg_scale is inf"),
        ("qwen-image", {**STILL, "guidance_scale_2": 3.0}, [], "guidance_scale_2 is no option"),
        ("wan-i2v", {}, [], "0 reference images, expected 1"),
        (
            "wan-i2v",
            {},
            [Image.new("RGB", (4000, 2))],
            "4000x2 pixels is too narrow for an output of 64 * 64",
        ),
        ("wan-i2v", {"flow_shift": -1.0}, [PICTURE], "flow_shift is -1.0, expected more than 0"),
        ("wan2.2-ti2v", {"width": 80}, [], "width is 80, expected a multiple of 32"),
        ("wan2.2-ti2v", {"max_sequence_length": 600}, [], "max_sequence_length is 600"),
        ("wan2.2-ti2v", {"strength": 0.5}, [PICTURE], "strength is no option"),
        ("flux2-klein", STILL, [PICTURE, Image.new("RGB", (63, 90))], "image is not taken: Image too small"),
        (
            "flux2-klein",
            STILL,
            [Image.new("RGB", (900, 100))],
            "image is not taken: Aspect ratio too extreme",
        ),
        ("flux2-klein", STILL, [PICTURE] * 5, "5 reference images, expected 0 to 4"),
        ("ltx-2", {"num_frames": 13}, [], "num_frames is 13, expected a multiple of 8 plus 1"),
        ("ltx-2", {"num_frames": 9, "width": 80}, [], "width is 80, expected a multiple of 32"),
        ("ltx-2", {"num_frames": 9, "height": 32}, [], "height is 32, expected at least 64"),
        ("ltx-2", {"num_frames": 9, "fps": 0.5}, [], "fps is 0.5, expected at least 1"),
        ("ltx-2", {"num_frames": 9, "max_sequence_length": 12}, [], "is 12, expected a multiple of 8"),
    ],
)
def test_a_request_that_the_family_cannot_serve(
    encoders: dict[str, RoleModel], family: str, fields: Mapping[str, Any], images: list[Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason.replace("*", r"\*")):
        encoders[family].run(generation(**fields), {}, Recorder(), images)


def test_guidance_without_negative_embeddings_is_no_silent_default(
    folders: dict[str, Path], encoders: dict[str, RoleModel]
) -> None:
    unguided = generation(**STILL, guidance_scale=1.0)
    values = encoders["qwen-image"].run(unguided, {}, Recorder())
    denoiser = opened(folders["qwen-image"], Role.DENOISER)
    denoiser.run(unguided, values, Recorder())
    with pytest.raises(
        ValueError, match="needs negative_prompt_embeds, negative_prompt_embeds_mask to guide"
    ):
        denoiser.run(generation(**STILL, guidance_scale=4.0), values, Recorder())


def test_the_standard_pipeline_names_what_is_missing_and_what_is_too_much(
    folders: dict[str, Path], encoders: dict[str, RoleModel]
) -> None:
    values = encoders["wan2.2-ti2v"].run(generation(), {}, Recorder())
    denoiser = opened(folders["wan2.2-ti2v"], Role.DENOISER)
    with pytest.raises(ValueError, match="denoiser needs 'negative_prompt_embeds'"):
        denoiser.run(generation(), {"prompt_embeds": values["prompt_embeds"]}, Recorder())
    with pytest.raises(ValueError, match="denoiser received 'negative_prompt_embeds'"):
        denoiser.run(generation(guidance_scale=1.0), values, Recorder())


def test_sizes_with_a_reference_image_stay_within_their_bound(
    folders: dict[str, Path], encoders: dict[str, RoleModel]
) -> None:
    denoiser = opened(folders["wan-i2v"], Role.DENOISER)
    request = generation(width=96, num_inference_steps=1)
    for size in ((100, 75), (75, 100), (400, 90), (97, 65)):
        values = encoders["wan-i2v"].run(request, {}, Recorder(), [Image.new("RGB", size)])
        assert pack(values).nbytes <= encoders["wan-i2v"].output_bytes(request)
        made = denoiser.run(request, values, Recorder())
        assert pack(made).nbytes <= denoiser.output_bytes(request) <= denoiser.largest_output_bytes()


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "empty", "pickle"])
def test_damaged_weights(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(folders["flux"], tmp_path / "model")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "corrupt": b"\xff" * 64 + content[64:],
            "empty": b"",
            "pickle": b"",
        }[damage]
    )
    if damage == "pickle":
        weights.unlink()
        torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        opened(folder, Role.DECODER)
    assert str(caught.value).startswith(f"{folder / 'vae'}: cannot be loaded: ")
    assert "\n" not in str(caught.value)
    opened(folder, Role.DENOISER)  # the others do not need it


def test_weights_of_another_shape(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["flux"], tmp_path / "model")
    config = folder / "vae" / "config.json"
    changed = json.loads(config.read_text()) | {"block_out_channels": [8, 8, 16, 32]}
    config.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=r"vae: .*"):
        opened(folder, Role.DECODER)


def test_a_default_that_the_model_does_not_take(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["flux"], tmp_path / "model")
    (folder / "triptych.json").write_text('{"flow_shift": 3.0, "strength": 0.8}')
    with pytest.raises(ModelError, match="a default for flow_shift, which the model does not take"):
        opened(folder, Role.DECODER)
    (folder / "triptych.json").write_text('{"strength": 0.8}')
    assert opened(folder, Role.DECODER).facts.defaults.strength == 0.8
