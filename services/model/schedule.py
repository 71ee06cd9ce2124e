"""The noise schedule of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shift_option(config: Mapping[str, Any]) -> str | None:
    """The scheduler's own name for ``flow_shift``; None if its shift follows from the size of the output, or
    it has none.
    """
    if config.get("use_dynamic_shifting"):
        return None
    if config.get("use_flow_sigmas") and "flow_shift" in config:
        return "flow_shift"
    return "shift" if "shift" in config else None


def least_steps(config: Mapping[str, Any]) -> int:
    """A schedule that is stretched between its first step and a given last one has two; of one step only
    "not a number" is left.
    """
    return 2 if config.get("shift_terminal") else 1


def fresh_scheduler(scheduler: Any, flow_shift: float | None) -> Any:
    """One like ``scheduler`` that no run has used yet, with another shift if one is given."""
    name = shift_option(scheduler.config)
    changes = {} if flow_shift is None or name is None else {name: flow_shift}
    return type(scheduler).from_config(scheduler.config, **changes)
