"""The same work in one process: the fused diffusers pipeline.

Answers each line of its input, a request, with a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEEPS_FREED = "--keeps-freed"


class Fused:
    """The process, from the outside. RuntimeError when it ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def generate(self, fields: dict[str, Any], path: Path) -> dict[str, Any]:
        """Writes a video to ``path``; answers with ``seconds``, in all and by stage, and, as the
        decoder does, ``frames_xxh3``.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**fields, "path": str(path)}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fused pipeline's process ended; see its error above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(model: Path, threads: int, keeps_freed: bool = False) -> Iterator[Fused]:
    """Loaded and ready; it ``keeps_freed`` memory if it is to, as roles do."""
    words = [str(model), str(threads), *([KEEPS_FREED] if keeps_freed else [])]
    with started("benchmarks.split.fused", *words) as fused:
        fused.answer()
        yield fused


@contextlib.contextmanager
def started(module: str, *arguments: str) -> Iterator[Fused]:
    """``module``, which answers once when it is ready, and then each line."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for its parent; when that is gone, its input ends
    ) as process:
        try:
            yield Fused(process)
        finally:
            process.kill()


def _serve(model: Path, threads: int) -> None:
    import numpy as np
    import torch
    import xxhash
    from diffusers import DiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging

    from benchmarks.split.watch import Watch
    from services.media.open import open_writer

    disable_progress_bar()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    watch = Watch()
    watch.attach(pipeline)
    print("{}", flush=True)
    for line in sys.stdin:
        fields = json.loads(line)
        watch.start()
        width, height = (int(side) for side in fields["size"].split("x"))
        output = pipeline(
            fields["prompt"],
            width=width,
            height=height,
            num_frames=fields["num_frames"],
            num_inference_steps=fields["num_inference_steps"],
            guidance_scale=fields["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(fields["seed"]),
            output_type="np",
        )
        frames = (output.frames[0] * 255).round().astype(np.uint8)
        checksum = xxhash.xxh3_64(np.ascontiguousarray(frames).data)
        with open_writer(Path(fields["path"]), "mp4", width, height, fields["fps"]) as writer:
            writer.write(frames)
            writer.finish()
        watch.end("decode")
        answer = {
            "seconds": sum(watch.seconds.values()),
            "stages": watch.seconds,
            "frames_xxh3": checksum.hexdigest(),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if KEEPS_FREED in sys.argv[3:]:
        from services.heap import keep_freed

        keep_freed()
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
