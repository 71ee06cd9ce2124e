"""A modular pipeline's blocks cut into the three roles, and the names of what crosses each cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffusers.modular_pipelines import SequentialPipelineBlocks

from services.role import Role

ROLES = tuple(Role)
# A block may change them, to fit a reference image; then all later roles must know, asked for or not.
SIZE = frozenset({"width", "height"})


@dataclass(frozen=True)
class Cut:
    """What crosses from a role and those before it to those after it."""

    names: frozenset[str]  # what later roles ask for
    required: frozenset[str]  # of these, what they cannot do without and only earlier roles make
    groups: frozenset[str]  # kinds of values that later roles ask for as a whole


def split(blocks: Any) -> dict[Role, Any]:
    """The block ``denoise`` is the denoiser, what is before it the encoder, what is after it the decoder."""
    return {
        role: SequentialPipelineBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in part})
        for role, part in _parts(blocks).items()
    }


def components(blocks: Any, role: Role, workflows: Iterable[str]) -> set[str]:
    """Names of the components that ``role`` holds for these workflows; for all that it does without any.

    A workflow's own blocks only tell this, they are not for running: they take each choice that the blocks
    make by their inputs as made, in favour of steps that should be skipped too.
    """
    part = _parts(blocks)[role]
    if not workflows:
        return {spec.name for name in part for spec in blocks.sub_blocks[name].expected_components}
    return {
        spec.name
        for workflow in workflows
        for name, block in blocks.get_workflow(workflow).sub_blocks.items()
        if name.partition(".")[0] in part
        for spec in block.expected_components
    }


def cut_after(parts: dict[Role, Any], role: Role) -> Cut:
    """The cut behind ``role``; behind the last role nothing is asked for."""
    position = ROLES.index(role) + 1
    earlier = [parts[role] for role in ROLES[:position]]
    later = [parts[role] for role in ROLES[position:]]
    asked = [parameter for blocks in later for parameter in blocks.inputs]
    made = {output.name for blocks in earlier for output in blocks.intermediate_outputs}
    names = {parameter.name for parameter in asked if parameter.name}
    # A block inside may require what the whole only declares as optional: Wan's negative embeddings.
    needed = {name for blocks in later for name in blocks.required_inputs}
    return Cut(
        names=frozenset(names) | (SIZE if later else frozenset()),
        required=frozenset(names & needed & made),
        groups=frozenset(parameter.kwargs_type for parameter in asked if not parameter.name),
    )


def _parts(blocks: Any) -> dict[Role, list[str]]:
    names = list(blocks.sub_blocks)
    denoise = names.index("denoise")
    return dict(
        zip(ROLES, (names[:denoise], names[denoise : denoise + 1], names[denoise + 1 :]), strict=True)
    )
