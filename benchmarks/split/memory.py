"""What splitting saves: the resident memory of each role and of the fused pipeline, same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.row import Effort, Report, Round, middle
from benchmarks.split import fused, models
from benchmarks.system import named, resident_bytes, running
from benchmarks.table import markdown

WEIGHTS = {"encoder": "text_encoder", "denoiser": "transformer", "decoder": "vae"}
POOLS = ("--max-pixels", str(128 * 128), "--max-frames", "17")  # small: weights are to be seen
MB = 10**6
FUSED = "fused"


def measure(effort: Effort) -> Iterator[Round]:
    """Bytes that a role grows by for each byte that its own weights grow by: of the greediest of them."""
    with models.small(effort) as small, models.large(effort) as large:
        added = {role: weights(large, role) - weights(small, role) for role in WEIGHTS}
        for _ in range(effort.count(2, 1)):
            before, after = (resident(model) for model in (small, large))
            grown = {name: after[name] - before[name] for name in after}
            yield Round(
                max(grown[role] / nbytes for role, nbytes in added.items() if nbytes > 0),
                {"small": before, "large": after, "grown": grown, "weights_added": added},
            )


def summary(rounds: list[Round]) -> str:
    names = (*WEIGHTS, FUSED)
    added = ", ".join(f"{role} {nbytes / MB:.0f}" for role, nbytes in rounds[0].raw["weights_added"].items())
    grown = ", ".join(f"{name} {middle(rounds, 'grown', name) / MB:.0f}" for name in names)
    return f"weights added {added} MB made them grow by {grown} MB"


def table(reports: Sequence[Report]) -> str:
    """A line for each process: megabytes of resident memory after a request, by model."""
    return "\n".join(
        markdown(
            ("process", "small model, MB", "large model, MB", "weights added, MB", "grown by, MB"),
            [
                [
                    name,
                    f"{middle(report.rounds, 'small', name) / MB:.0f}",
                    f"{middle(report.rounds, 'large', name) / MB:.0f}",
                    f"{_added(report, name) / MB:.0f}",
                    f"{middle(report.rounds, 'grown', name) / MB:.0f}",
                ]
                for name in (*WEIGHTS, FUSED)
            ],
        )
        for report in reports
    )


def _added(report: Report, name: str) -> int:
    added: dict[str, int] = report.rounds[0].raw["weights_added"]
    return sum(added.values()) if name == FUSED else added[name]


def resident(model: models.Model) -> dict[str, int]:
    """Bytes by role, and ``fused``, after a request."""
    request = {**model.fields, "num_frames": 5, "num_inference_steps": 2, "seed": 1}
    with (
        running(str(model.folder), roles=(*models.ROLES, *POOLS)) as box,
        Connection(box.port) as connection,
    ):
        connection.generate(request)
        found = {role: resident_bytes(named(box, role).pid) for role in WEIGHTS}
    with (
        fused.running(model.folder, models.THREADS) as whole,
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch,
    ):
        whole.generate(request, Path(scratch) / "fused.mp4")
        return {**found, FUSED: resident_bytes(whole.pid)}


def weights(model: models.Model, role: str) -> int:
    return sum(file.stat().st_size for file in (model.folder / WEIGHTS[role]).glob("*.safetensors"))
