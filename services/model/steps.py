"""A look into denoising loops: progress after each step, and a place to stop before each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks

from services.model.base import Control
from services.model.device import settle


class StepHook:
    """Sits in every loop of a pipeline's blocks; ``control`` is that of the run in progress.

    A step is done when ``device`` has done it: otherwise all steps would be queued at once, progress would
    run ahead, and a cancel would come too late for all of them.
    """

    def __init__(self, blocks: Any, device: torch.device) -> None:
        self.control: Control | None = None
        self._device = device
        for loop in loops(blocks):
            loop.set_progress_bar_config(disable=True)
            self._hook(loop)

    def _hook(self, loop: Any) -> None:
        step = loop.loop_step

        def hooked(components: Any, state: Any, **position: Any) -> Any:
            if self.control is None:
                return step(components, state, **position)
            self.control.raise_if_cancelled()
            result = step(components, state, **position)
            settle(self._device)
            self.control.progress(position["i"] + 1, len(state.timesteps))
            return result

        loop.loop_step = hooked


def loops(blocks: Any) -> Iterator[Any]:
    """The denoising loops within ``blocks``, however deep."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
    for block in getattr(blocks, "sub_blocks", {}).values():
        yield from loops(block)
