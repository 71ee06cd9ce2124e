"""What FLUX.2 klein models are asked in the tests."""

from __future__ import annotations

from collections.abc import Mapping

from tests.services.model.cases import IMAGE, PICTURE, UNGUIDED, Case, FamilyCases

GUIDED = {"guider": 3.0}

CASES: Mapping[str, FamilyCases] = {
    "flux2-klein": FamilyCases(
        "Flux2KleinModularPipeline",
        Case("text", IMAGE),
        (
            Case("another shape", {**IMAGE, "width": 96}),
            Case("short text", {**IMAGE, "max_sequence_length": 20}, inputs={"max_sequence_length": 20}),
            Case("image", IMAGE, image=PICTURE),
            Case("two images", IMAGE, image=PICTURE, second_image=(70, 110)),
        ),
    ),
    "flux2-klein-base": FamilyCases(
        "Flux2KleinBaseModularPipeline",
        Case("text", IMAGE, GUIDED),
        (
            Case("without guidance", {**IMAGE, "guidance_scale": 1.0}, UNGUIDED),
            Case(
                "image, short text",
                {**IMAGE, "max_sequence_length": 20},
                GUIDED,
                image=PICTURE,
                inputs={"max_sequence_length": 20},
            ),
        ),
    ),
}
