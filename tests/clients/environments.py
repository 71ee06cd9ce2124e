"""Where ``make clients`` has put what the clients need, beside the environment of Triptych itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPENAI_2 = ROOT / ".clients" / "openai-2" / "bin" / "python"
AIPERF = ROOT / ".clients" / "aiperf" / "bin" / "aiperf"
NODE = Path(__file__).parent / "node"
NODE_MODULES = NODE / "node_modules"


def need(path: Path) -> Path:
    """The path; where nothing is there the test is skipped, but not in CI."""
    if not path.exists():
        _missing(f"needs {path.relative_to(ROOT)} (made by: make clients)")
    return path


def need_command(name: str) -> str:
    """The path of a command of the system, with the same rule."""
    found = shutil.which(name)
    return found if found is not None else _missing(f"needs the command {name}")


def _missing(reason: str) -> str:
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
