"""Every family, split over three processes, makes bit for bit what its fused pipeline makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.guiders import BaseGuidance
from PIL import Image

from deploy.tiny.table import MODELS
from services.model import open_model
from services.model.families import FAMILIES, ModularFamily
from services.role import Role
from tests.services.model import cases_flux2, cases_hunyuan, cases_ltx2, cases_zimage
from tests.services.model.cases import CASES as FIRST_CASES
from tests.services.model.cases import Case
from tests.services.model.fused import Fused, FusedStandard, Recording
from tests.services.model.stage_process import load
from tests.services.model.support import OPTIONS, generation
from transfer.manifest import Value, pack
from triptych_proto.control_pb2 import Generation

ROOT = Path(__file__).parents[3]
CASES = {**FIRST_CASES, **cases_flux2.CASES, **cases_zimage.CASES, **cases_hunyuan.CASES, **cases_ltx2.CASES}
PARAMETERS = [(family, case.name) for family, cases in CASES.items() for case in cases.all]


@dataclass
class Split:
    """What crossed between the processes, and what came out."""

    encoded: dict[str, Value]
    denoised: dict[str, Value]
    frames: np.ndarray
    sound: np.ndarray | None
    rate: int


def case_of(family: str, name: str) -> Case:
    return next(case for case in CASES[family].all if case.name == name)


def request_of(case: Case) -> Generation:
    return generation(**case.fields)


def images_of(case: Case) -> list[Image.Image]:
    return [picture(*size) for size in (case.image, case.second_image) if size is not None]


def picture(width: int, height: int) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(255, 0, height))
    pixels = np.stack([across, down, (across * 7 + down * 3) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("families")
    return {family: MODELS[family](parent / f"tiny-{family}", 0) for family in CASES}


@pytest.fixture(scope="module")
def directories(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """All cases of all families, through one process for each role."""
    parent, jobs, places = tmp_path_factory.mktemp("split"), [], {}
    for index, (family, name) in enumerate(PARAMETERS):
        case = case_of(family, name)
        places[family, name] = directory = parent / str(index)
        directory.mkdir()
        (directory / "request").write_bytes(request_of(case).SerializeToString())
        for position, image in enumerate(images_of(case)):
            image.save(directory / f"{position}.png")
        jobs.append({"folder": str(folders[family]), "directory": str(directory)})
    (parent / "jobs").write_text(json.dumps(jobs))
    for role in Role:
        command = [sys.executable, "-m", "tests.services.model.stage_process", role.value]
        result = subprocess.run(
            [*command, str(parent / "jobs")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result.stderr
    return places


@pytest.fixture(scope="module")
def fused(folders: dict[str, Path]) -> dict[str, Fused]:
    rows = {family.name: family for family in FAMILIES if isinstance(family, ModularFamily)}
    return {
        family: Fused(folders[family], cases.pipeline, rows[family].mend)
        for family, cases in CASES.items()
        if cases.modular
    }


def split_of(directories: Mapping[Any, Path], family: str, name: str) -> Split:
    directory = directories[family, name]
    values, frames = (
        (load(directory / "encoded"), load(directory / "denoised")),
        np.load(directory / "frames.npy"),
    )
    if not (directory / "sound.npz").exists():
        return Split(*values, frames, None, 0)
    with np.load(directory / "sound.npz") as sound:
        return Split(*values, frames, sound["samples"], int(sound["rate"]))


def record(fused: Fused, case: Case) -> Recording:
    def guiders(scales: Mapping[str, float]) -> dict[str, Any]:
        return {
            name: scale if isinstance(scale, BaseGuidance) else ClassifierFreeGuidance(guidance_scale=scale)
            for name, scale in scales.items()
        }

    return fused.run(
        request_of(case),
        guiders(case.guiders),
        images_of(case),
        case.schedule,
        denoise_guiders=guiders(case.denoise_guiders),
        **case.inputs,
    )


@pytest.mark.parametrize(("family", "name"), [key for key in PARAMETERS if CASES[key[0]].modular])
def test_equals_the_fused_pipeline(
    directories: dict[Any, Path], fused: dict[str, Fused], family: str, name: str
) -> None:
    case = case_of(family, name)
    split, recording = split_of(directories, family, name), record(fused[family], case)
    blocks = fused[family].pipeline._blocks.sub_blocks
    after = list(blocks)[list(blocks).index("denoise") :]
    request = request_of(case)
    told = told_by(request) | case.inputs
    assert_carried(split.encoded, recording.encoded, [blocks[block] for block in after], told)
    assert_carried(split.denoised, recording.denoised, [blocks[block] for block in after[1:]], told)
    assert split.frames.dtype == np.uint8
    assert split.frames.std() > 15, "frames without content would hide differences"
    np.testing.assert_array_equal(split.frames, recording.frames)
    assert (split.sound is None) == (recording.sound is None)
    if split.sound is not None:
        assert split.sound.dtype == np.float32
        assert 0.02 < split.sound.std() < 0.5, "sound without content would hide differences"
        np.testing.assert_array_equal(split.sound, recording.sound)
        assert split.sound.shape[1] / split.rate == pytest.approx(request.num_frames / request.fps, abs=0.1)


@pytest.mark.parametrize("family", [family for family, cases in CASES.items() if not cases.modular])
def test_equals_the_standard_pipeline(
    directories: dict[Any, Path], folders: dict[str, Path], family: str
) -> None:
    fused = FusedStandard(folders[family], CASES[family].pipeline, "WanImageToVideoPipeline")
    for case in CASES[family].all:
        frames = split_of(directories, family, case.name).frames
        assert frames.std() > 15, "frames without content would hide differences"
        expected = fused.frames(request_of(case), images_of(case), case.schedule, **case.inputs)
        np.testing.assert_array_equal(frames, expected, case.name)


def told_by(request: Generation) -> dict[str, Any]:
    """What a role knows without being handed it, by the names that blocks give it."""
    fields = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields}
    return {**fields, "frame_rate": request.fps, "output_type": "np"}


def assert_carried(
    values: Mapping[str, Value], state: Mapping[str, Any], later: list[Any], told: Mapping[str, Any]
) -> None:
    """What crossed is what was there, and nothing is missing that a later block asks for."""
    groups: Any = values.get("__groups__", {})
    for name, value in values.items():
        if not name.startswith("__"):
            if isinstance(value, torch.dtype):
                assert value == state[name], name
            else:
                torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    asked = {parameter.name for block in later for parameter in block.inputs} - {"generator", None}
    asked |= {name for names in groups.values() for name in names}
    for name in asked & state.keys():
        if name not in values:
            assert not holds_tensors(state[name]), f"{name} was dropped"
            defaults = {p.name: p.default for block in later for p in block.inputs}
            assert state[name] in (told.get(name), defaults.get(name), None), f"{name} was dropped"


def holds_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(holds_tensors, value))
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("family", CASES)
def test_each_change_of_a_request_shows(directories: dict[Any, Path], family: str) -> None:
    base, *changed = (split_of(directories, family, case.name).frames for case in CASES[family].all)
    for case, frames in zip(CASES[family].changes, changed, strict=True):
        assert not np.array_equal(frames, base), case.name


@pytest.mark.parametrize("family", CASES)
def test_what_crosses_stays_within_its_bound(
    directories: dict[Any, Path], folders: dict[str, Path], family: str
) -> None:
    encoder, denoiser, decoder = (open_model(role, str(folders[family]), **OPTIONS) for role in Role)
    for case in CASES[family].all:
        split, request = split_of(directories, family, case.name), request_of(case)
        for sender, receiver, values in (
            (encoder, denoiser, split.encoded),
            (denoiser, decoder, split.denoised),
        ):
            bound = sender.output_bytes(request)
            assert pack(values).nbytes <= bound <= sender.largest_output_bytes(), case.name
            assert bound <= receiver.largest_input_bytes(), case.name


@pytest.mark.parametrize("family", CASES)
def test_facts_tell_the_options_and_each_is_tested(folders: dict[str, Path], family: str) -> None:
    facts = open_model(Role.DECODER, str(folders[family]), **OPTIONS).facts
    assert facts.family == family
    given = {name for case in CASES[family].all for name in case.fields}
    assert set(facts.options) <= given
    assert (facts.max_images > 0) == any(case.image for case in CASES[family].all)
    row = next(row for row in FAMILIES if row.name == family)
    assert (facts.output, facts.negative_prompt) == (row.output, row.negative_prompt)
    if facts.output == "image":
        assert (facts.max_frames, facts.temporal_multiple, facts.defaults.num_frames) == (1, 1, 1)


def test_every_family_is_tested() -> None:
    assert CASES.keys() == MODELS.keys() == {family.name for family in FAMILIES}


def test_the_page_on_models_names_every_family() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    table = page.partition("## Families")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == {row.name for row in FAMILIES}
