"""Stage graphs: which stages a request goes through, as data.

A further kind of request (two encoders whose outputs are joined, a video and an audio decoder side by
side) is a further graph; scheduler and state machine know only stages and their inputs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Work(enum.Enum):
    """What the time of a stage grows with."""

    CONSTANT = "constant"
    PIXELS = "pixels"  # width x height x frames
    STEPS = "steps"  # the same in every denoising step


@dataclass(frozen=True)
class Stage:
    """One step of a request, run by one instance of ``role``."""

    name: str
    role: str
    inputs: tuple[str, ...] = ()  # the stages whose outputs it needs
    share: int = 0  # of a job's progress, in percent
    work: Work = Work.CONSTANT
    images: bool = False  # it reads the request's reference images


@dataclass(frozen=True)
class Graph:
    """Stages in an order in which each comes after its inputs; the last one makes the result."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            unknown = set(stage.inputs) - seen
            if unknown or stage.name in seen:
                raise ValueError(
                    f"stage {stage.name!r} is repeated or comes before its inputs {sorted(unknown)}"
                )
            seen.add(stage.name)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stage.role for stage in self.stages))

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def consumers(self, name: str) -> tuple[Stage, ...]:
        """The stages that need the output of ``name``."""
        return tuple(stage for stage in self.stages if name in stage.inputs)


GENERATION = Graph(
    (
        Stage("encode", "encoder", share=2, images=True),
        Stage("denoise", "denoiser", ("encode",), share=93, work=Work.STEPS),
        Stage("decode", "decoder", ("denoise",), share=5, work=Work.PIXELS),
    )
)
