"""What Z-Image models are asked in the tests."""

from __future__ import annotations

from collections.abc import Mapping

from tests.services.model.cases import IMAGE, NEGATIVE, PICTURE, UNGUIDED, Case, FamilyCases

# A scale of 3 is one of 4 as the guider counts.
GUIDED = {"guider": 4.0}

CASES: Mapping[str, FamilyCases] = {
    "z-image": FamilyCases(
        "ZImageModularPipeline",
        Case("text", IMAGE, GUIDED),
        (
            Case("negative prompt", {**IMAGE, **NEGATIVE}, GUIDED),
            Case("weak guidance", {**IMAGE, "guidance_scale": 0.5}, {"guider": 1.5}),
            Case("without guidance", {**IMAGE, "guidance_scale": 0.0}, UNGUIDED),
            Case("flow shift", {**IMAGE, "flow_shift": 2.0}, GUIDED, schedule={"shift": 2.0}),
            Case(
                "short text", {**IMAGE, "max_sequence_length": 20}, GUIDED, inputs={"max_sequence_length": 20}
            ),
            Case("image", IMAGE, GUIDED, image=PICTURE),
            Case("strength", {**IMAGE, "strength": 0.9}, GUIDED, image=PICTURE, inputs={"strength": 0.9}),
            Case("another shape", {**IMAGE, "width": 96}, GUIDED),
        ),
    ),
    "z-image-turbo": FamilyCases(
        "ZImageModularPipeline",
        Case("text", {"num_frames": 1, "guidance_scale": 0.0}, UNGUIDED),
        (
            Case(
                "flow shift",
                {"num_frames": 1, "guidance_scale": 0.0, "flow_shift": 6.0},
                UNGUIDED,
                schedule={"shift": 6.0},
            ),
            Case(
                "image, short text",
                {"num_frames": 1, "guidance_scale": 0.0, "strength": 0.4, "max_sequence_length": 20},
                UNGUIDED,
                image=PICTURE,
                inputs={"strength": 0.4, "max_sequence_length": 20},
            ),
        ),
    ),
}
