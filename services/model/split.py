"""A modular pipeline's blocks cut into the three roles, and the names of what crosses each cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.modular_pipelines import SequentialPipelineBlocks

from services.role import Role

ROLES = tuple(Role)


@dataclass(frozen=True)
class Cut:
    """What crosses from a role and those before it to those after it."""

    names: frozenset[str]  # what later roles ask for
    required: frozenset[str]  # of these, what they cannot do without and only earlier roles make
    groups: frozenset[str]  # kinds of values that later roles ask for as a whole


def split(blocks: Any) -> dict[Role, Any]:
    """The block ``denoise`` is the denoiser, what is before it the encoder, what is after it the decoder."""
    names = list(blocks.sub_blocks)
    denoise = names.index("denoise")
    parts = (names[:denoise], [names[denoise]], names[denoise + 1 :])
    return {
        role: SequentialPipelineBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in part})
        for role, part in zip(ROLES, parts, strict=True)
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
        names=frozenset(names),
        required=frozenset(names & needed & made),
        groups=frozenset(parameter.kwargs_type for parameter in asked if not parameter.name),
    )
