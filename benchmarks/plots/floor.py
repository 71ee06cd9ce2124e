"""The figure of the floor: what a tiny request is made of, and the floor beside Triptych."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.floor.beside import CLIENT, SYSTEMS
from benchmarks.floor.parts import TIMES
from benchmarks.plots.style import colour, figure
from benchmarks.table import number

Record = dict[str, Any]
# Parts and processes are coloured by what they do.
COLOURS = {
    "http": "memcpy", "commits": "ray-serve", "stream": "zmq", "file": "mooncake",
    "server": "memcpy", "orchestrator": "memcpy", "encoder": "encode", "denoiser": "denoise",
    "decoder": "decode",
}  # fmt: skip
# Rows of other requests, with the figure of theirs that is shown.
OTHERS = {
    "tensors": ("p50", "4 MB and 42 MB, one client, ms"),
    "wan": ("p50", "Wan's tensors, one client, ms"),
    "cpu": ("server", "server's CPU for a 480p video, ms"),
}
NAMES = {"stream": "three stream round trips", "server": "server, orchestrator"}


def floor(records: Sequence[Record], path: Path) -> None:
    """Time of one client, with that of the parts; its CPU by process; the rate of eight. Below, other
    requests where they were measured.
    """
    rounds = {record["row"]: [one["raw"] for one in record["rounds"]] for record in records}
    lines = 2 if rounds.keys() & OTHERS else 1
    title = "The floor beneath a request"
    with figure(path, title, records, columns=3, rows=lines) as (left, middle, right, *below):
        if "parts" in rounds:
            parts = {
                name: statistics.median(one[name]["ms"] for one in rounds["parts"]) * times
                for name, times in TIMES.items()
            }
            _stacked(left, "parts", parts, set())
        if "one" in rounds:
            _bars(left, rounds["one"], "p50")
            named: set[str] = set()
            for system in SYSTEMS:
                names = [name for name in rounds["one"][0][system]["cpu"] if name != CLIENT]
                cpu = {
                    name: statistics.median(one[system]["cpu"][name] for one in rounds["one"])
                    for name in names
                }
                _stacked(middle, system, cpu, named)
        if "rate" in rounds:
            _bars(right, rounds["rate"], "rate")
        for row, axes in zip(OTHERS, below, strict=False):
            name, label = OTHERS[row]
            if row in rounds:
                _bars(axes, rounds[row], name)
            axes.set_ylabel(label)
        left.set_ylabel("one client, ms")
        middle.set_ylabel("CPU of a request, one client, ms")
        right.set_ylabel("eight clients, requests/s")
        for axes in (left, middle):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=7)


def _bars(axes: Any, rounds: Sequence[Mapping[str, Any]], name: str) -> None:
    """One for each system, with the range of its rounds."""
    for system in SYSTEMS:
        values = [one[system][name] for one in rounds]
        height = statistics.median(values)
        error = [[height - min(values)], [max(values) - height]]
        axes.bar(
            [system], [height], 0.6, yerr=error, capsize=3,
            color=colour("triptych" if system == "triptych" else "mosec"),
        )  # fmt: skip
        axes.annotate(
            number(height), (system, max(values)), xytext=(0, 3), textcoords="offset points", ha="center"
        )


def _stacked(axes: Any, place: str, pieces: Mapping[str, float], named: set[str]) -> None:
    """A bar of pieces, and their sum in figures. Each colour is ``named`` once."""
    below = 0.0
    for name, height in pieces.items():
        kind = COLOURS[name]
        label = None if kind in named else NAMES.get(name, name)
        axes.bar([place], [height], 0.6, bottom=below, color=colour(kind), label=label)
        named.add(kind)
        below += height
    axes.annotate(number(below), (place, below), xytext=(0, 3), textcoords="offset points", ha="center")
