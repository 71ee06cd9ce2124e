"""Where the time of a pipeline in one process goes, by the stages that it would have if it were split."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Watch:
    """Seconds by stage. Where one ends and the next begins ``settle`` is called, to wait for a device."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self._settle = settle
        self._last = time.monotonic()

    def attach(self, pipeline: Any) -> None:
        """To a diffusers pipeline with ``text_encoder`` and ``vae``: ``encode``, ``denoise``, ``decode``."""
        # It runs once for each text: all there is before the last of them ends is encoding.
        pipeline.text_encoder.register_forward_hook(lambda *_: self.end("encode"))
        pipeline.vae.decode = self._around(pipeline.vae.decode, "denoise", "decode")

    def start(self) -> None:
        self.seconds.clear()
        self._last = time.monotonic()

    def end(self, stage: str) -> None:
        self._settle()
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def _around(self, function: Callable[..., Any], before: str, stage: str) -> Callable[..., Any]:
        """``function`` is ``stage``, and what was before it is another one."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.end(before)
            result = function(*args, **kwargs)
            self.end(stage)
            return result

        return watched
