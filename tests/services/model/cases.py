"""What every family is asked in the tests, and the same request in the terms of its fused pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A request, and what it must mean. ``fields`` are those of ``Generation``."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    # Scales of classifier-free guidance, or guiders of other kinds.
    guiders: Mapping[str, Any] = field(default_factory=dict)
    denoise_guiders: Mapping[str, float] = field(default_factory=dict)  # where encoding needs others
    image: tuple[int, int] | None = None  # width and height of the reference image
    second_image: tuple[int, int] | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)  # changes to the scheduler's config
    inputs: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline, beside those all have


@dataclass(frozen=True)
class FamilyCases:
    """``base`` and what becomes of it when one thing is changed."""

    pipeline: str  # the fused modular pipeline's class; of a family without Modular blocks, the standard one
    base: Case
    changes: tuple[Case, ...]
    modular: bool = True

    @property
    def all(self) -> tuple[Case, ...]:
        return (self.base, *self.changes)


NEGATIVE = {"negative_prompt": "rain and snow"}
UNGUIDED = {"guider": 1.0}
GUIDED = {"guider": 5.0}
PICTURE = (100, 75)

WAN = {"num_frames": 5}
WAN_CHANGES = (
    Case("negative prompt", {**WAN, **NEGATIVE}, GUIDED),
    Case("without guidance", {**WAN, "guidance_scale": 1.0}, GUIDED, denoise_guiders=UNGUIDED),
    Case("flow shift", {**WAN, "flow_shift": 7.0}, GUIDED, schedule={"flow_shift": 7.0}),
    Case("short text", {**WAN, "max_sequence_length": 4}, GUIDED, inputs={"max_sequence_length": 4}),
    Case("another shape", {"num_frames": 9, "width": 96}, GUIDED),
)
# With five steps the first three are the first transformer's.
WAN_22 = {"num_frames": 5, "num_inference_steps": 5, "guidance_scale_2": 2.0}
TWO = {"guider": 5.0, "guider_2": 2.0}
IMAGE = {"num_frames": 1, "guidance_scale": 3.0}

CASES: Mapping[str, FamilyCases] = {
    "wan": FamilyCases("WanModularPipeline", Case("text", WAN, GUIDED), WAN_CHANGES),
    "wan2.2": FamilyCases(
        "Wan22ModularPipeline",
        Case("text", WAN_22, TWO),
        (
            Case("negative prompt", {**WAN_22, **NEGATIVE}, TWO),
            Case("one scale", {"num_frames": 5, "num_inference_steps": 5}, {"guider": 5.0, "guider_2": 5.0}),
            Case("flow shift", {**WAN_22, "flow_shift": 7.0}, TWO, schedule={"flow_shift": 7.0}),
            Case("short text", {**WAN_22, "max_sequence_length": 4}, TWO, inputs={"max_sequence_length": 4}),
        ),
    ),
    "wan-i2v": FamilyCases(
        "WanImage2VideoModularPipeline",
        Case("image", WAN, GUIDED, image=PICTURE),
        (
            Case("negative prompt", {**WAN, **NEGATIVE}, GUIDED, image=PICTURE),
            Case("upright image", WAN, GUIDED, image=(50, 110)),
            Case(
                "without guidance",
                {**WAN, "guidance_scale": 0.5},
                GUIDED,
                denoise_guiders=UNGUIDED,
                image=PICTURE,
            ),
            Case(
                "flow shift",
                {**WAN, "flow_shift": 7.0, "max_sequence_length": 9},
                GUIDED,
                image=PICTURE,
                schedule={"flow_shift": 7.0},
                inputs={"max_sequence_length": 9},
            ),
        ),
    ),
    "wan2.2-i2v": FamilyCases(
        "Wan22Image2VideoModularPipeline",
        Case("image", WAN_22, TWO, image=PICTURE),
        (
            Case(
                "flow shift",
                {**WAN_22, **NEGATIVE, "flow_shift": 2.0, "max_sequence_length": 9},
                TWO,
                image=PICTURE,
                schedule={"flow_shift": 2.0},
                inputs={"max_sequence_length": 9},
            ),
        ),
    ),
    "wan2.2-ti2v": FamilyCases(
        "WanPipeline",
        Case("text", WAN),
        (
            Case("negative prompt", {**WAN, **NEGATIVE}),
            Case("without guidance", {**WAN, "guidance_scale": 1.0}),
            Case("flow shift", {**WAN, "flow_shift": 7.0}, schedule={"flow_shift": 7.0}),
            Case("short text", {**WAN, "max_sequence_length": 4}, inputs={"max_sequence_length": 4}),
            Case("image", WAN, image=PICTURE),
        ),
        modular=False,
    ),
    "flux": FamilyCases(
        "FluxModularPipeline",
        Case("text", IMAGE, inputs={"guidance_scale": 3.0}),
        (
            Case("guidance", {**IMAGE, "guidance_scale": 6.0}, inputs={"guidance_scale": 6.0}),
            Case("another seed", {**IMAGE, "seed": 8}, inputs={"guidance_scale": 3.0}),
            Case(
                "short text",
                {**IMAGE, "max_sequence_length": 4},
                inputs={"guidance_scale": 3.0, "max_sequence_length": 4},
            ),
            Case("image", IMAGE, image=PICTURE, inputs={"guidance_scale": 3.0}),
            Case(
                "strength",
                {**IMAGE, "strength": 0.9, "num_inference_steps": 5},
                image=PICTURE,
                inputs={"guidance_scale": 3.0, "strength": 0.9},
            ),
        ),
    ),
    "flux-schnell": FamilyCases(
        "FluxModularPipeline",
        Case("text", IMAGE),
        (
            Case("flow shift", {**IMAGE, "flow_shift": 3.0}, schedule={"shift": 3.0}),
            Case("short text", {**IMAGE, "max_sequence_length": 4}, inputs={"max_sequence_length": 4}),
            Case("strength", {**IMAGE, "strength": 0.4}, image=(33, 64), inputs={"strength": 0.4}),
        ),
    ),
    "qwen-image": FamilyCases(
        "QwenImageModularPipeline",
        Case("text", IMAGE, {"guider": 3.0}),
        (
            Case("negative prompt", {**IMAGE, **NEGATIVE}, {"guider": 3.0}),
            Case("true cfg", {**IMAGE, "true_cfg_scale": 6.0}, {"guider": 6.0}),
            Case("without guidance", {**IMAGE, "guidance_scale": 1.0}, UNGUIDED),
            Case(
                "short text",
                {**IMAGE, "max_sequence_length": 140},
                {"guider": 3.0},
                inputs={"max_sequence_length": 140},
            ),
            Case("image", {**IMAGE, "num_inference_steps": 11}, {"guider": 3.0}, image=PICTURE),
            Case(
                "strength",
                {**IMAGE, "strength": 0.4},
                {"guider": 3.0},
                image=PICTURE,
                inputs={"strength": 0.4},
            ),
        ),
    ),
}
