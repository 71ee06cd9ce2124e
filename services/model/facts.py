"""What a role says of its model, for the orchestrator to accept or refuse requests at the door."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from services.model.base import USUAL_PIXELS, Limits, ModelError
from services.model.families import Family
from services.model.folder import ModelFolder
from services.model.request import OPTIONS
from services.model.schedule import shift_option
from triptych_proto.control_pb2 import Generation, Model


def options_of(blocks: Any, folder: ModelFolder, family: Family) -> list[str]:
    """Those of ``OPTIONS`` that the blocks take (None: there are none), or that follow from configs."""
    asked = {parameter.name for parameter in blocks.inputs} if blocks else set()
    expected = {spec.name for spec in blocks.expected_components} if blocks else set()
    found = set(family.options)
    if "max_sequence_length" in asked:
        found.add("max_sequence_length")
    if "strength" in asked and family.images[1]:
        found.add("strength")
    if "guider_2" in expected:
        found.add("guidance_scale_2")
    if folder.has_config("scheduler") and shift_option(folder.config("scheduler")):
        found.add("flow_shift")
    return [name for name in OPTIONS if name in found]


def facts_of(pipeline: Any, folder: ModelFolder, family: Family, limits: Limits, options: list[str]) -> Model:
    """All but the name and the fingerprint."""
    spatial, temporal = family.multiples(pipeline)
    defaults = folder.serving_defaults(family.defaults)
    if defaults.width % spatial or defaults.height % spatial or (defaults.num_frames - 1) % temporal:
        size = f"{defaults.width}x{defaults.height} with {defaults.num_frames} frames"
        raise ModelError(
            f"{folder.path}: its default of {size} cannot be: width and height are multiples of {spatial},"
            f" num_frames a multiple of {temporal} plus 1"
        )
    given = {name: value for name, value in asdict(defaults).items() if value is not None}
    if stray := sorted(name for name in given if name in OPTIONS and name not in options):
        raise ModelError(f"{folder.path}: a default for {', '.join(stray)}, which the model does not take")
    return Model(
        family=family.name,
        spatial_multiple=spatial,
        temporal_multiple=temporal,
        max_pixels=limits.max_pixels or max(USUAL_PIXELS, defaults.width * defaults.height),
        max_frames=1 if family.output == "image" else limits.max_frames,
        max_steps=limits.max_steps,
        defaults=Generation(**given),
        negative_prompt=family.negative_prompt,
        output=family.output,
        sound=family.sound,
        min_images=family.images[0],
        max_images=family.images[1],
        options=options,
    )
