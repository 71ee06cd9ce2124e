"""A fused diffusers pipeline in a process of its own: requests as lines of JSON in, times out."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.split.fused import Fused, started
from benchmarks.split.watch import Watch

PIPELINES = {"fused": "WanModularPipeline", "standard": "WanPipeline"}  # by part


def running(model: Path, device: str, part: str) -> AbstractContextManager[Fused]:
    """One of ``PIPELINES``. What it tells of its loading is its first ``answer``; then each request's
    ``seconds``, in all and of each stage, ``frames_xxh3`` and memory.
    """
    return started("benchmarks.gpu.fused", str(model), device, part)


def _serve(model: Path, place: str, part: str) -> None:
    import numpy as np
    import torch
    import xxhash
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from benchmarks.gpu.pipelines import Modular, Standard
    from services.media.open import open_writer
    from services.model.device import settle

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    device = torch.device(place)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    started = time.monotonic()
    whole = (Modular if part == "fused" else Standard.load)(model, device, dtype)
    settle(device)
    watch = Watch(lambda: settle(device))
    watch.attach(whole.pipeline)
    print(json.dumps({"load_seconds": time.monotonic() - started}), flush=True)
    for line in sys.stdin:
        fields = json.loads(line)
        started = time.monotonic()
        watch.start()
        frames = (whole.frames(fields) * 255).round().astype(np.uint8)
        watch.end("pixels")
        _, height, width, _ = frames.shape
        with open_writer(Path(fields["path"]), "mp4", width, height, fields["fps"]) as writer:
            writer.write(frames)
            writer.finish()
        watch.end("save")
        answer = {
            "seconds": time.monotonic() - started,
            "stages": dict(watch.seconds),
            "frames_xxh3": xxhash.xxh3_64(np.ascontiguousarray(frames).data).hexdigest(),
        }
        if device.type == "cuda":
            answer["allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
