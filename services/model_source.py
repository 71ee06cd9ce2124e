"""What ``--model`` may name. Imports nothing heavy: launchers ask before they start processes."""

from __future__ import annotations

import re
from pathlib import Path

INDEX = "model_index.json"
EMULATED = "emulated:"  # a stand-in for tests and benchmarks
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def problem(model: str) -> str:
    """Why ``model`` is neither a diffusers folder nor the id of a hub's model, or nothing."""
    path = Path(model).expanduser()
    if model.startswith(EMULATED):
        return ""
    if path.is_dir():
        return "" if (path / INDEX).is_file() else f"{model}: no diffusers model: it has no {INDEX}"
    return "" if HUB_ID.fullmatch(model) else f"{model}: no such folder"
