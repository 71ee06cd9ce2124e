"""What a training says as it goes: lines of JSON, in a file and on the terminal."""

from __future__ import annotations

import json
from pathlib import Path


class Log:
    """Appends to ``path``; several processes may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, what: str, **values: object) -> None:
        rounded = {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()
        }
        line = json.dumps({"what": what, **rounded}, default=str)
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
