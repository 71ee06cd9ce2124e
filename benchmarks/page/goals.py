"""Every goal that Triptych has set itself, with what was measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page.results import cell, records, report
from benchmarks.table import markdown, number

MB = 10**6
HEADING = ("what", "goal", "measured", "rounds", "", "others")
# Topic and row, in the order in which they are shown.
ROWS = {
    ("requests", "tiny"): "tiny request through three roles over HTTP, one client, p50",
    ("requests", "rate"): "tiny requests, eight clients",
    ("requests", "tensors"): "the same with 4 MB + 42 MB tensors, one client, p50",
    ("requests", "wan"): "Wan 480p/81-frame tensor shapes, no compute, p50",
    ("requests", "cpu"): "orchestrator CPU per video with real 480p/81 pixels",
    ("requests", "polls"): "event loop's lag p99 while 50 clients poll",
    ("split", "latency"): "split over fused, one request",
    ("split", "latency-large"): "the same, more weights",
    ("split", "memory"): "a role's memory grows by, over its weights",
    ("scheduler", "queue-1"): "requests/s, 10,000 waiting over 100, one instance of each role",
    ("scheduler", "queue-4"): "the same, 4 of each",
    ("scheduler", "queue-64"): "the same, 64 of each",
    ("scheduler", "decisions"): "the same, scheduler alone",
    ("scheduler", "1:1:1"): "throughput over its bound, roles 1:1:1",
    ("scheduler", "1:4:1"): "the same, 1:4:1",
    ("scheduler", "2:8:1"): "the same, 2:8:1",
    ("faults", "triptych"): "one of two denoisers killed under load: failed or wrong",
}


def table(folder: Path) -> str:
    """A line for each goal; those that were not measured say so."""
    topics = {topic for topic, _ in ROWS}
    found = {(topic, one["row"]): one for topic in topics for one in records(folder, topic)}
    lines = [_line(what, found.get(key)) for key, what in ROWS.items()]
    return markdown(HEADING, [*lines, *_hops(records(folder, "transfer"))])


def _line(what: str, record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return [what, "", "not measured", "", "", ""]
    _, _, measured, rounds, goal, _, others = report(record).line()
    return [what, goal, measured, rounds, _verdict(record["met"]), others]


def _hops(found: list[dict[str, Any]]) -> list[list[str]]:
    """Those of the data plane."""
    lines = []
    for record in found:
        one = cell(record)
        if (one.name, one.nbytes) == ("shm", 42 * MB):
            what, goal, unit, scale = "a 42 MB hop on one host, over one memcpy", 2.5, "x", 1 / one.floor
        elif (one.name, one.nbytes) == ("zmq", 16 * MB):
            what, goal, unit, scale = "a 16 MB hop over TCP on loopback, with checksum", 8.0, "ms", 1e3
        else:
            continue
        median, low, high = (seconds * scale for seconds in (one.total.median, one.total.p10, one.total.p90))
        measured, rounds = f"{number(median)} {unit}", f"{number(low)}..{number(high)}"
        others = number(record["cores_used_by_others"]) if "cores_used_by_others" in record else ""
        lines.append([what, f"<= {goal:g} {unit}", measured, rounds, _verdict(median <= goal), others])
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "**not met**"
