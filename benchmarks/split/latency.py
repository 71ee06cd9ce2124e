"""What splitting costs one request: three processes against the fused pipeline in one, equal threads."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.row import Effort, Report, Round, middle
from benchmarks.split import fused, models
from benchmarks.system import running
from benchmarks.table import markdown, number

STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Sample:
    """A request: seconds from the prompt to the video file, and of them those of each stage."""

    seconds: float
    stages: Mapping[str, float]
    frames: str  # their checksum


Ask = Callable[[int], Sample]  # of a seed


def measure(
    model_of: Callable[[Effort], AbstractContextManager[models.Model]], pairs: int, keeps_freed: bool = False
) -> Callable[[Effort], Iterator[Round]]:
    """Both in turns, ``pairs`` times a round, with frames that must be equal.

    Each round starts all processes anew: how many page faults a process has is luck, and stays so for much of
    its life. The fused one is diffusers as it comes, or ``keeps_freed`` memory as roles do.
    """

    def rounds(effort: Effort) -> Iterator[Round]:
        with model_of(effort) as model:
            for turn in range(effort.rounds):
                ways = {"split": lambda: _split(model), "fused": lambda: _fused(model, keeps_freed)}
                yield round_of(dict(sorted(ways.items(), reverse=turn % 2 == 0)), effort.count(pairs, 1))

    return rounds


def round_of(ways: Mapping[str, Callable[[], AbstractContextManager[Ask]]], pairs: int) -> Round:
    """The first of ``ways`` starts first; then neither is always the one that goes first."""
    with contextlib.ExitStack() as stack:
        ask = {name: stack.enter_context(way()) for name, way in ways.items()}
        found: dict[str, list[Sample]] = {name: [] for name in ways}
        for seed in range(pairs + 1):  # the first warms up
            for name in list(ask)[:: -1 if seed % 2 else 1]:
                found[name].append(ask[name](seed))
            if len({samples[-1].frames for samples in found.values()}) != 1:
                raise RuntimeError(f"seed {seed}: split and fused made different frames")
    split, fused = found["split"][1:], found["fused"][1:]
    return Round(
        statistics.median(ours.seconds / theirs.seconds for ours, theirs in zip(split, fused, strict=True)),
        {
            name: statistics.median(sample.seconds for sample in samples)
            for name, samples in (("split", split), ("fused", fused))
        }
        | {
            "stages": {
                name: {
                    stage: statistics.median(sample.stages[stage] for sample in samples) for stage in STAGES
                }
                for name, samples in (("split", split), ("fused", fused))
            }
        },
    )


@contextlib.contextmanager
def _split(model: models.Model) -> Iterator[Ask]:
    with (
        running(str(model.folder), roles=models.ROLES, encoder=models.ENCODER) as box,
        Connection(box.port) as connection,
    ):

        def ask(seed: int) -> Sample:
            journey = connection.sync({**model.fields, "seed": seed})
            attempts = connection.timeline(journey.video["id"])["attempts"]
            return Sample(
                journey.total,
                {each["stage"]: each["compute_seconds"] + each["save_seconds"] for each in attempts},
                journey.video["frames_xxh3"],
            )

        yield ask


@contextlib.contextmanager
def _fused(model: models.Model, keeps_freed: bool) -> Iterator[Ask]:
    with (
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch,
        fused.running(model.folder, models.THREADS, keeps_freed) as whole,
    ):

        def ask(seed: int) -> Sample:
            answer = whole.generate({**model.fields, "seed": seed}, Path(scratch) / "fused.mp4")
            return Sample(answer["seconds"], answer["stages"], answer["frames_xxh3"])

        yield ask


def summary(rounds: list[Round]) -> str:
    alone, together = middle(rounds, "fused"), middle(rounds, "split")
    return f"split {together:.2f} s, fused {alone:.2f} s; their frames are equal"


def table(reports: Sequence[Report]) -> str:
    """A line for each stage: medians over the rounds, of seconds and of ratios."""
    return markdown(
        ("row", "stage", "split, s", "fused, s", "split / fused"),
        [line for report in reports for line in _lines(report)],
    )


def _lines(report: Report) -> Iterator[list[str]]:
    for stage in STAGES:
        ratios = [
            each.raw["stages"]["split"][stage] / each.raw["stages"]["fused"][stage] for each in report.rounds
        ]
        yield [
            report.row.name,
            stage,
            *(number(middle(report.rounds, "stages", way, stage)) for way in ("split", "fused")),
            number(statistics.median(ratios)),
        ]
    rest = [each.raw["split"] - sum(each.raw["stages"]["split"].values()) for each in report.rounds]
    yield [report.row.name, "all else", number(statistics.median(rest)), "", ""]
