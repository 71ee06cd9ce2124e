"""A look into denoising loops: progress after each step, and a place to stop before each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.modular_pipelines import LoopSequentialPipelineBlocks

from services.model.base import Control


class StepHook:
    """Sits in every loop of a pipeline's blocks; ``control`` is that of the run in progress."""

    def __init__(self, blocks: Any) -> None:
        self.control: Control | None = None
        for loop in _loops(blocks):
            loop.set_progress_bar_config(disable=True)
            self._hook(loop)

    def _hook(self, loop: Any) -> None:
        step = loop.loop_step

        def hooked(components: Any, state: Any, **position: Any) -> Any:
            if self.control is None:
                return step(components, state, **position)
            self.control.raise_if_cancelled()
            result = step(components, state, **position)
            self.control.progress(position["i"] + 1, len(state.timesteps))
            return result

        loop.loop_step = hooked


def _loops(blocks: Any) -> Iterator[Any]:
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
    for block in getattr(blocks, "sub_blocks", {}).values():
        yield from _loops(block)
