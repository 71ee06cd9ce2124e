"""What all figures have in common: size, colours of systems, and where they were measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

INCHES = (9.0, 3.8)
COLOURS = {
    "triptych": "#2563a8", "ray-serve": "#d97706", "mosec": "#6b7280",
    "shm": "#2563a8", "zmq": "#0f9d82", "mooncake": "#8b5cf6", "memcpy": "#111827",
    "plain-zmq": "#7fcfc0", "plain-mooncake": "#c4b5fd",
    "split": "#2563a8", "fused": "#d97706",
    "encode": "#0f9d82", "denoise": "#2563a8", "decode": "#8b5cf6", "save": "#d97706", "other": "#9ca3af",
}  # fmt: skip
# The same input gives the same file, so that a figure changes in the repository only when its numbers do.
matplotlib.rcParams.update({"svg.hashsalt": "triptych", "font.size": 9, "axes.spines.top": False,
                            "axes.spines.right": False})  # fmt: skip


@contextlib.contextmanager
def figure(
    path: Path, title: str, records: Sequence[dict[str, Any]], columns: int = 1, rows: int = 1
) -> Iterator[list[Axes]]:
    """Axes to draw on, row by row; the file is written at the end, with the machine and the commit below."""
    width, height = INCHES
    size = (width, height * rows)
    drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    try:
        yield list(axes.flat)
        drawn.suptitle(title)
        drawn.supxlabel(_where(records[0]), fontsize=7, color="#6b7280")
        drawn.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    finally:
        plt.close(drawn)


def colour(name: str) -> str:
    return COLOURS.get(name, COLOURS["other"])


def _where(record: dict[str, Any]) -> str:
    memory = record["memory_bytes"] / 2**30
    kind = "".join(word for word in ("quick", "short") if record.get(word))
    return (
        f"{record['cpu']}, {record['cores']} cores, {memory:.0f} GiB; commit {record['commit']},"
        f" {record['date'][:10]}{f' ({kind} run)' if kind else ''}"
    )
