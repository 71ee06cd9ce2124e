"""What splitting saves: the resident memory of each role and of the fused pipeline, same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.row import Effort, Report, Round, middle
from benchmarks.split import fused, models
from benchmarks.system import named, resident_by_kind, running
from benchmarks.table import markdown

WEIGHTS = {"encoder": "text_encoder", "denoiser": "transformer", "decoder": "vae"}
POOLS = ("--max-pixels", str(128 * 128), "--max-frames", "17")  # small: weights are to be seen
MB = 10**6
Resident = dict[str, dict[str, int]]  # bytes by role, and ``fused``, and by kind
FUSED = "fused"
KINDS = ("files", "shared", "own")


def measure(
    smaller: Callable[[Effort], AbstractContextManager[models.Model]],
) -> Callable[[Effort], Iterator[Round]]:
    """From ``smaller`` to the large model: bytes that a role grows by for each byte that its own weights grow
    by, of the greediest role.
    """

    def rounds(effort: Effort) -> Iterator[Round]:
        with smaller(effort) as small, models.large(effort) as large:
            added = {role: weights(large, role) - weights(small, role) for role in WEIGHTS}
            for _ in range(effort.count(2, 1)):
                yield compared(resident(small), resident(large), added)

    return rounds


def compared(before: Resident, after: Resident, added: dict[str, int]) -> Round:
    """``added`` are bytes of weights by role."""
    kinds = {name: {kind: after[name][kind] - before[name][kind] for kind in KINDS} for name in after}
    grown = {name: sum(kinds[name].values()) for name in kinds}
    return Round(
        max(grown[role] / nbytes for role, nbytes in added.items() if nbytes > 0),
        {
            "small": {name: sum(before[name].values()) for name in before},
            "large": {name: sum(after[name].values()) for name in after},
            "grown": grown,
            "grown_by_kind": kinds,
            "weights_added": added,
        },
    )


def summary(rounds: list[Round]) -> str:
    names = (*WEIGHTS, FUSED)
    added = ", ".join(f"{role} {nbytes / MB:.0f}" for role, nbytes in rounds[0].raw["weights_added"].items())
    grown = ", ".join(f"{name} {middle(rounds, 'grown', name) / MB:.0f}" for name in names)
    return f"weights added {added} MB made them grow by {grown} MB"


def table(reports: Sequence[Report]) -> str:
    """A line for each process: megabytes of resident memory after a request, by model."""
    return markdown(
        ("row", "process", "before, MB", "after, MB", "weights added", "grown by", *KINDS),
        [_line(report, name) for report in reports for name in (*WEIGHTS, FUSED)],
    )


def _line(report: Report, name: str) -> list[str]:
    sizes = [
        *(middle(report.rounds, model, name) for model in ("small", "large")),
        _added(report, name),
        middle(report.rounds, "grown", name),
        *(middle(report.rounds, "grown_by_kind", name, kind) for kind in KINDS),
    ]
    return [report.row.name, name, *(str(round(size / MB)) for size in sizes)]


def _added(report: Report, name: str) -> int:
    added: dict[str, int] = report.rounds[0].raw["weights_added"]
    return sum(added.values()) if name == FUSED else added[name]


def resident(model: models.Model) -> Resident:
    """After a request."""
    request = {**model.fields, "num_frames": 5, "num_inference_steps": 2, "seed": 1}
    with (
        running(str(model.folder), roles=(*models.ROLES, *POOLS)) as box,
        Connection(box.port) as connection,
    ):
        connection.generate(request)
        found = {role: resident_by_kind(named(box, role).pid) for role in WEIGHTS}
    with (
        fused.running(model.folder, models.THREADS) as whole,
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch,
    ):
        whole.generate(request, Path(scratch) / "fused.mp4")
        return {**found, FUSED: resident_by_kind(whole.pid)}


def weights(model: models.Model, role: str) -> int:
    return sum(file.stat().st_size for file in (model.folder / WEIGHTS[role]).glob("*.safetensors"))
