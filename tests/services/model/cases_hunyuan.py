"""What HunyuanVideo 1.5 models are asked in the tests."""

from __future__ import annotations

from collections.abc import Mapping

from tests.services.model.cases import GUIDED, NEGATIVE, PICTURE, UNGUIDED, Case, FamilyCases

VIDEO = {"num_frames": 5}

CASES: Mapping[str, FamilyCases] = {
    "hunyuan-video-1.5": FamilyCases(
        "HunyuanVideo15ModularPipeline",
        Case("text", VIDEO, GUIDED),
        (
            Case("negative prompt", {**VIDEO, **NEGATIVE}, GUIDED),
            Case("text to be shown", {**VIDEO, "prompt": 'a red circle that says "stop"'}, GUIDED),
            Case("without guidance", {**VIDEO, "guidance_scale": 1.0}, GUIDED, denoise_guiders=UNGUIDED),
            Case("flow shift", {**VIDEO, "flow_shift": 9.0}, GUIDED, schedule={"shift": 9.0}),
            Case("another shape", {"num_frames": 9, "width": 96}, GUIDED),
        ),
    ),
    "hunyuan-video-1.5-i2v": FamilyCases(
        "HunyuanVideo15ModularPipeline",
        Case("image", VIDEO, GUIDED, image=PICTURE),
        (
            Case("upright image", VIDEO, GUIDED, image=(50, 110)),
            Case(
                "flow shift",
                {**VIDEO, **NEGATIVE, "flow_shift": 7.0, "width": 96},
                GUIDED,
                image=PICTURE,
                schedule={"shift": 7.0},
            ),
        ),
    ),
}
