"""Writes videos to a disk that fills up: ``DIRECTORY``; prints what became of each as JSON.

Mounts a small disk there, so it is to be started with a mount namespace of its own, which takes it away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

from services.media.files import MediaError
from services.media.store import LocalStore
from services.model.base import Control, Decoded, Value
from services.stage import MediaStage
from triptych_proto.control_pb2 import Generation, Model, Run

PAGE = 4096
PAGES = 24
FILES = 8
REQUEST = Generation(width=64, height=64, num_frames=12, fps=8)


class Noise:
    """A model whose videos take some pages."""

    facts = Model()

    def decode(self, generation: Generation, inputs: Mapping[str, Value], control: Control) -> Decoded:
        return Decoded(self._frames(generation))

    def _frames(self, generation: Generation) -> Iterator[np.ndarray]:
        chance = np.random.default_rng(0)
        for _ in range(generation.num_frames):
            yield chance.integers(0, 256, (1, generation.height, generation.width, 3), np.uint8)


class Unwatched:
    def raise_if_cancelled(self) -> None: ...

    def progress(self, step: int, total: int) -> None: ...


def attempt(stage: Any, directory: Path, task_id: str) -> dict[str, object]:
    """Sizes are in pages. An accepted video is decoded, then removed."""
    try:
        product = stage.run(Run(task_id=task_id, generation=REQUEST), {}, Unwatched())
    except MediaError as error:
        return {"error": str(error), "left": sorted(path.name for path in directory.glob("*.mp4*"))}
    stage.accept(product)
    path = directory / product.file.name
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    path.unlink()
    return {"frames": frames, "pages": -(-product.file.bytes // PAGE), "left": []}


def main() -> None:
    directory = Path(sys.argv[1])
    size = f"size={PAGES * PAGE},nr_inodes={FILES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(directory)], check=True)
    stage: Any = MediaStage(Noise(), LocalStore(directory))  # type: ignore[arg-type]
    ballast = directory / "ballast"
    by_pages = {}
    for free in range(PAGES + 1):
        ballast.write_bytes(bytes((PAGES - free) * PAGE))
        by_pages[free] = attempt(stage, directory, f"pages-{free}")
    ballast.unlink()
    by_files = {}
    while (free := os.statvfs(directory).f_ffree) > 0:
        (directory / f"ballast-{free}").touch()
        free = os.statvfs(directory).f_ffree
        by_files[free] = attempt(stage, directory, f"files-{free}")
    print(json.dumps({"by_pages": by_pages, "by_files": by_files}))


if __name__ == "__main__":
    main()
