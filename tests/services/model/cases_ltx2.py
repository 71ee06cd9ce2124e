"""What LTX-2 models are asked in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import LTX2Guidance

from tests.services.model.cases import NEGATIVE, PICTURE, Case, FamilyCases

VIDEO = {"num_frames": 9, "fps": 8, "guidance_scale": 5.0}


def guided(block: int) -> dict[str, Any]:
    """Scales: of the prompt, of the perturbed block, of the other modality; then the rescaling."""
    return {
        "guider": LTX2Guidance(5.0, 1.0, 3.0, 0.7, [block]),
        "audio_guider": LTX2Guidance(7.0, 1.0, 3.0, 0.7),
    }


UNGUIDED = {"guider": LTX2Guidance(enabled=False), "audio_guider": LTX2Guidance(enabled=False)}


def changes(block: int, inputs: Mapping[str, Any]) -> tuple[Case, ...]:
    return (
        Case("negative prompt", {**VIDEO, **NEGATIVE}, guided(block), inputs=inputs),
        Case("without guidance", {**VIDEO, "guidance_scale": 1.0}, UNGUIDED, inputs=inputs),
        Case("faster", {**VIDEO, "fps": 13}, guided(block), inputs=inputs),
        Case(
            "short text",
            {**VIDEO, "max_sequence_length": 16},
            guided(block),
            inputs={**inputs, "max_sequence_length": 16},
        ),
        Case("image", VIDEO, guided(block), image=PICTURE, inputs=inputs),
        Case(
            "another shape",
            {**VIDEO, "num_frames": 17, "width": 96},
            guided(block),
            image=(50, 110),
            inputs=inputs,
        ),
    )


LTX_2, LTX_2_3 = {"use_cross_timestep": False}, {"use_cross_timestep": True}

CASES: Mapping[str, FamilyCases] = {
    "ltx-2": FamilyCases(
        "LTX2ModularPipeline", Case("text", VIDEO, guided(29), inputs=LTX_2), changes(29, LTX_2)
    ),
    "ltx-2.3": FamilyCases(
        "LTX2ModularPipeline", Case("text", VIDEO, guided(28), inputs=LTX_2_3), changes(28, LTX_2_3)
    ),
}
