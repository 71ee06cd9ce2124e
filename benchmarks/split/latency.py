"""What splitting costs one request: three processes against the fused pipeline in one, equal threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.row import Effort, Round, middle
from benchmarks.split import fused, models
from benchmarks.system import running


def measure(
    model_of: Callable[[Effort], AbstractContextManager[models.Model]],
) -> Callable[[Effort], Iterator[Round]]:
    """Both in turn, from the prompt to the video file, each round with frames that must be equal."""

    def rounds(effort: Effort) -> Iterator[Round]:
        with (
            model_of(effort) as model,
            tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch,
            running(str(model.folder), roles=models.ROLES, encoder=models.ENCODER) as box,
            fused.running(model.folder, models.THREADS) as whole,
            Connection(box.port) as connection,
        ):
            path = Path(scratch) / "fused.mp4"
            for turn in range(-1, effort.rounds):  # the first warms up
                request = {**model.fields, "seed": turn + 1}
                if turn % 2:  # neither is always the one that goes first
                    journey, alone = connection.sync(request), whole.generate(request, path)
                else:
                    alone, journey = whole.generate(request, path), connection.sync(request)
                if journey.video["frames_xxh3"] != alone["frames_xxh3"]:
                    raise RuntimeError(f"seed {turn + 1}: split and fused made different frames")
                if turn >= 0:
                    yield Round(
                        journey.total / alone["seconds"],
                        {
                            "split": journey.total,
                            "fused": alone["seconds"],
                            "stages": journey.video["stage_durations"],
                        },
                    )

    return rounds


def summary(rounds: list[Round]) -> str:
    alone, together = middle(rounds, "fused"), middle(rounds, "split")
    return f"split {together:.2f} s, fused {alone:.2f} s; their frames are equal"
