"""Split over three roles on a GPU, families make bit for bit what their fused pipelines make there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.model.families import ModularFamily
from tests.gpu.support import DEVICE, DTYPES, Roles, build, guiders, row
from tests.services.model import cases_hunyuan, cases_ltx2, cases_zimage
from tests.services.model.cases import CASES as FIRST_CASES
from tests.services.model.fused import Fused, FusedStandard
from tests.services.model.support import generation
from tests.services.model.test_families import images_of

CASES = {**FIRST_CASES, **cases_zimage.CASES, **cases_hunyuan.CASES, **cases_ltx2.CASES}
MODULAR = [
    ("wan", "float32"),
    ("wan", "bfloat16"),
    ("wan2.2-i2v", "bfloat16"),
    ("flux", "float32"),
    ("flux", "bfloat16"),
    ("qwen-image", "bfloat16"),
    ("z-image", "bfloat16"),
    ("hunyuan-video-1.5", "bfloat16"),
    ("ltx-2", "float32"),
    ("ltx-2", "bfloat16"),
]


@pytest.mark.parametrize(("family", "dtype"), MODULAR)
def test_equals_the_fused_pipeline(tmp_path: Path, family: str, dtype: str) -> None:
    folder, cases, kind = build(family, tmp_path), CASES[family], row(family)
    assert isinstance(kind, ModularFamily)
    fused = Fused(folder, cases.pipeline, kind.mend, device=DEVICE, dtype=DTYPES[dtype], float32=kind.float32)
    roles, case = Roles.of(folder, dtype), cases.base
    request, images = generation(**case.fields), images_of(case)
    expected = fused.run(
        request,
        guiders(case.guiders),
        images,
        case.schedule,
        denoise_guiders=guiders(case.denoise_guiders),
        **case.inputs,
    )
    frames, sound = roles.run(request, images)
    assert frames.std() > 5, "frames without content would hide differences"
    np.testing.assert_array_equal(frames, expected.frames)
    assert (sound is None) == (expected.sound is None)
    if sound is not None:
        np.testing.assert_array_equal(sound, expected.sound)


def test_equals_the_standard_pipeline(tmp_path: Path) -> None:
    family = "wan2.2-ti2v"
    folder, case = build(family, tmp_path), CASES[family].base
    fused = FusedStandard(
        folder,
        CASES[family].pipeline,
        "WanImageToVideoPipeline",
        device=DEVICE,
        dtype=DTYPES["bfloat16"],
        float32=row(family).float32,
    )
    request = generation(**case.fields)
    frames, _ = Roles.of(folder, "bfloat16").run(request)
    assert frames.std() > 5, "frames without content would hide differences"
    np.testing.assert_array_equal(frames, fused.frames(request, (), case.schedule, **case.inputs))
