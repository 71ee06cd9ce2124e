"""How long a training runs, how its rate goes, and the average of weights that it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch

WARM_UP = 0.03  # of the whole


class Budget:
    """Steps or seconds, whichever ends first; the clock starts when it is made."""

    def __init__(self, steps: int | None = None, seconds: float | None = None) -> None:
        """ValueError without either."""
        if steps is None and seconds is None:
            raise ValueError("a budget needs steps or seconds, or both")
        self._steps, self._seconds = steps, seconds
        self._started = time.monotonic()
        self.done = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def spent(self) -> float:
        """From 0 to 1, when it ends."""
        steps = 0.0 if self._steps is None else self.done / self._steps
        seconds = 0.0 if self._seconds is None else self.seconds / self._seconds
        return min(max(steps, seconds), 1.0)


def rate(spent: float, peak: float) -> float:
    """The learning rate when that much of the budget is spent: up to ``peak`` in a line, down by a cosine."""
    if spent < WARM_UP:
        return peak * (spent + 1e-3) / (WARM_UP + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * (spent - WARM_UP) / (1 - WARM_UP)))


class Average:
    """An exponential moving average of parameters, without the poor ones of the start."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self._parameters: list[torch.Tensor] = list(parameters)
        self._means = [parameter.detach().clone() for parameter in self._parameters]
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._means, self._parameters, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the average in the parameters' place."""
        for parameter, mean in zip(self._parameters, self._means, strict=True):
            parameter.copy_(mean)
