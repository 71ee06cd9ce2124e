"""One figure for each topic; each takes the lines of its run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots.floor import floor
from benchmarks.plots.style import colour, figure
from benchmarks.table import number

Record = dict[str, Any]
MB = 10**6


def requests(records: Sequence[Record], path: Path) -> None:
    """How far each row is from its goal: on the left of the line it is met."""
    with figure(path, "One request: measured over its goal", records) as (axes,):
        for place, record in enumerate(reversed(records)):
            factors = [_factor(record, record[name]) for name in ("lowest", "measured", "highest")]
            low, middle, high = min(factors), factors[1], max(factors)
            shade = colour("shm") if record["met"] else colour("ray-serve")
            axes.barh(place, middle, xerr=[[middle - low], [high - middle]], color=shade, capsize=3)
            label = f"  {record['measured']:.3g} {record['unit']}, goal {record['goal']:g}"
            axes.text(high, place, label, va="center", fontsize=8)
        axes.set_yticks(range(len(records)), [record["row"] for record in reversed(records)])
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 3)
        axes.set_xlabel("times the goal (below 1: met)")


def _factor(record: Record, value: float) -> float:
    goal: float = record["goal"]
    return goal / value if record["at_least"] else value / goal


def peers(records: Sequence[Record], path: Path) -> None:
    """Latency and rate by payload and system."""
    with figure(path, "Three stages without compute, over HTTP", records, columns=2) as (left, right):
        for axes, clients, figure_of, label in (
            (left, "one", "p50", "p50 of one client, ms"),
            (right, "many", "rate", "requests/s of 8 clients"),
        ):
            _grouped(
                axes,
                [record["what"] for record in records],
                {
                    system: [
                        [one["raw"][system][clients][figure_of] for one in record["rounds"]]
                        for record in records
                    ]
                    for system in records[0]["rounds"][0]["raw"]
                },
            )
            axes.set_yscale("log")
            axes.set_ylabel(label)
        left.legend(frameon=False)


def _grouped(axes: Any, groups: Sequence[str], bars: dict[str, list[list[float]]]) -> None:
    """Bars side by side with the range of their rounds, and their medians in figures."""
    width = 0.8 / len(bars)
    for order, (name, samples) in enumerate(bars.items()):
        places = [group + (order - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        middles = [statistics.median(values) for values in samples]
        below = [middle - min(values) for middle, values in zip(middles, samples, strict=True)]
        above = [max(values) - middle for middle, values in zip(middles, samples, strict=True)]
        axes.bar(places, middles, width, yerr=[below, above], capsize=2, color=colour(name), label=name)
        for place, values, middle in zip(places, samples, middles, strict=True):
            axes.annotate(
                number(middle), (place, max(values)), xytext=(0, 3), textcoords="offset points", ha="center",
                fontsize=7,
            )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups)


def transfer(records: Sequence[Record], path: Path) -> None:
    """Time of a hop by size."""
    with figure(path, "One hop between two processes", records) as (axes,):
        for name in dict.fromkeys(record["name"] for record in records):
            cells = sorted(
                (one for one in records if one["name"] == name), key=lambda one: int(one["nbytes"])
            )
            sizes = [cell["nbytes"] / MB for cell in cells]
            axes.plot(
                sizes, [cell["total"]["median"] * 1e3 for cell in cells], marker="o", markersize=3,
                color=colour(name), label=name,
            )  # fmt: skip
            axes.fill_between(
                sizes, [cell["total"]["p10"] * 1e3 for cell in cells],
                [cell["total"]["p90"] * 1e3 for cell in cells], color=colour(name), alpha=0.15,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("MB")
        axes.set_ylabel("ms, median and p10 to p90")
        axes.legend(frameon=False)


def split(records: Sequence[Record], path: Path) -> None:
    """One request, throughput, and memory."""
    rows = {record["row"]: record for record in records}
    with figure(path, "Split beside fused, same weights", records, columns=3) as (left, middle, right):
        latencies = [rows[name] for name in ("latency", "latency-large") if name in rows]
        _grouped(left, ["small", "large"][: len(latencies)], _split_and_fused(latencies))
        left.set_ylabel("one request, s")
        left.legend(frameon=False)
        if "throughput" in rows:
            _grouped(middle, ["small"], _split_and_fused([rows["throughput"]]))
            middle.set_ylabel("at saturation, requests/s")
        if "memory" in rows:
            rounds = [one["raw"] for one in rows["memory"]["rounds"]]
            names = list(rounds[0]["large"])
            for order, size in enumerate(("small", "large")):
                megabytes = [statistics.median(one[size][name] for one in rounds) / MB for name in names]
                places = [place + (order - 0.5) * 0.4 for place in range(len(names))]
                right.bar(places, megabytes, 0.4, label=size, color=colour(("zmq", "shm")[order]))
            right.set_xticks(range(len(names)), names, rotation=20)
            right.set_ylabel("resident memory, MB")
            right.legend(frameon=False)


def _split_and_fused(records: Sequence[Record]) -> dict[str, list[list[float]]]:
    return {
        name: [[one["raw"][name] for one in record["rounds"]] for record in records]
        for name in ("split", "fused")
    }


def scheduler(records: Sequence[Record], path: Path) -> None:
    """Rates by depth of the queue, and throughput over its bound."""
    queues = [record for record in records if record["row"].startswith("queue")]
    ratios = [record for record in records if ":" in record["row"]]
    with figure(path, "The scheduler", records, columns=2) as (left, right):
        for order, record in enumerate(queues):
            depths = list(record["rounds"][0]["raw"])
            rates = [
                statistics.median(one["raw"][depth]["rate"] for one in record["rounds"]) for depth in depths
            ]
            shade = colour(("shm", "zmq", "mooncake")[order % 3])
            left.plot([int(depth) for depth in depths], rates, marker="o", color=shade, label=record["what"])
        if queues:
            left.set_xscale("log")
            left.set_ylim(bottom=0)
            left.legend(frameon=False)
        left.set_xlabel("jobs waiting")
        left.set_ylabel("requests/s")
        if ratios:
            names = [record["row"] for record in ratios]
            _grouped(
                right, names, {"triptych": [[one["value"] for one in record["rounds"]] for record in ratios]}
            )
            right.axhline(ratios[0]["goal"], color="black", linewidth=1, linestyle=":")
            right.set_ylim(0.8, 1.05)
        right.set_xlabel("encoders : denoisers : decoders")
        right.set_ylabel("throughput over its bound")


def faults(records: Sequence[Record], path: Path) -> None:
    """Answers in each second around the kill, of the first round."""
    with figure(path, "One of two denoisers is killed at 0 s", records) as (axes,):
        for record in records:
            seen = record["rounds"][0]["raw"]
            first, last = int(min(seen["ends"])) - 1, int(max(seen["ends"])) + 1
            seconds = range(first, last)
            rates = [sum(second <= end < second + 1 for end in seen["ends"]) for second in seconds]
            failed = sum(len(one["raw"]["failures"]) for one in record["rounds"])
            label = f"{record['row']}: {failed} failed in {len(record['rounds'])} kills"
            axes.step(list(seconds), rates, where="post", color=colour(record["row"]), label=label)
        axes.axvline(0, color="black", linewidth=1, linestyle=":")
        axes.set_xlabel("seconds after the kill")
        axes.set_ylabel("answers per second")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


FIGURES: dict[str, Callable[[Sequence[Record], Path], None]] = {
    "requests": requests,
    "floor": floor,
    "peers": peers,
    "transfer": transfer,
    "split": split,
    "scheduler": scheduler,
    "faults": faults,
}
