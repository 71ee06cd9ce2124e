"""The peers' environments, made by ``make peers``: where they are, and what is installed in them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT

FOLDER = ROOT / ".peers"
_VERSION = "import importlib.metadata, json, sys; print(json.dumps(importlib.metadata.version(sys.argv[1])))"


@dataclass(frozen=True)
class Environment:
    """``folder`` is as its file of requirements is called, ``package`` the peer's distribution."""

    folder: str
    package: str

    @property
    def python(self) -> Path:
        return FOLDER / self.folder / "bin" / "python"

    def installed(self) -> bool:
        """Whether ``make peers`` came to its end there."""
        return (FOLDER / self.folder / "installed").exists()

    def version(self) -> str:
        output = subprocess.run(
            [str(self.python), "-c", _VERSION, self.package], capture_output=True, check=True, timeout=60
        ).stdout
        return str(json.loads(output))


RAY_SERVE = Environment("ray-serve", "ray")
MOSEC = Environment("mosec", "mosec")
