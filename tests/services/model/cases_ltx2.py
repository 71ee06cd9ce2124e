"""What LTX-2 models are asked in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import LTX2Guidance

from tests.services.model.cases import NEGATIVE, PICTURE, Case, FamilyCases

VIDEO = {"num_frames": 9, "fps": 8, "num_inference_steps": 2, "guidance_scale": 5.0}


def guided(block: int) -> dict[str, Any]:
    """Scales: of the prompt, of the perturbed block, of the other modality; then the rescaling."""
    return {
        "guider": LTX2Guidance(5.0, 1.0, 3.0, 0.7, [block]),
        "audio_guider": LTX2Guidance(7.0, 1.0, 3.0, 0.7),
    }


UNGUIDED = {"guider": LTX2Guidance(enabled=False), "audio_guider": LTX2Guidance(enabled=False)}
LTX_2, LTX_2_3 = {"use_cross_timestep": False}, {"use_cross_timestep": True}

CASES: Mapping[str, FamilyCases] = {
    "ltx-2": FamilyCases(
        "LTX2ModularPipeline",
        Case("text", VIDEO, guided(29), inputs=LTX_2),
        (
            Case("without guidance", {**VIDEO, "guidance_scale": 1.0}, UNGUIDED, inputs=LTX_2),
            Case("faster", {**VIDEO, "fps": 13}, guided(29), inputs=LTX_2),
            Case(
                "short text, image",
                {**VIDEO, **NEGATIVE, "max_sequence_length": 16, "num_frames": 17, "width": 96},
                guided(29),
                image=PICTURE,
                inputs={**LTX_2, "max_sequence_length": 16},
            ),
        ),
    ),
    "ltx-2.3": FamilyCases(
        "LTX2ModularPipeline",
        Case("text", VIDEO, guided(28), inputs=LTX_2_3),
        (
            Case(
                "short text",
                {**VIDEO, **NEGATIVE, "max_sequence_length": 16},
                guided(28),
                inputs={**LTX_2_3, "max_sequence_length": 16},
            ),
            Case("image", VIDEO, guided(28), image=(50, 110), inputs=LTX_2_3),
        ),
    ),
}
