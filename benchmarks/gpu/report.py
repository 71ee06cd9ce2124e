"""What was measured on a GPU, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu.model import Work
from benchmarks.table import markdown, number

GIB = 1 << 30
STAGES = ("encode", "denoise", "decode")


def tables(records: Sequence[Mapping[str, Any]], work: Work) -> str:
    """Medians; what was not measured is left out."""
    shown = [_stages(records, work), _memory(records), _hops(records)]
    return "\n\n".join(table for table in shown if table)


def _stages(records: Sequence[Mapping[str, Any]], work: Work) -> str:
    ways = {way: [r for r in records if r["part"] == way] for way in ("fused", "split")}
    if not any(ways.values()):
        return ""
    rows = [["request, s", *(_middle(found, "seconds") for found in ways.values())]]
    for stage in STAGES:
        rows.append([f"{stage}, s", *(_middle(found, "stages", stage) for found in ways.values())])
    rows.append(
        [
            "a denoising step, s",
            *(_middle(found, "stages", "denoise", by=work.steps) for found in ways.values()),
        ]
    )
    rows.append(
        ["pixels and file after the last frame, s", _after(ways["fused"]), _middle(ways["split"], "save")]
    )
    for stage in STAGES[1:]:
        rows.append(
            [f"reading the input of {stage}, ms", "", _middle(ways["split"], "reads", stage, by=1e-3)]
        )
    table = markdown(("what", *ways), rows)
    if all(ways.values()):
        ratio = median(r["seconds"] for r in ways["split"]) / median(r["seconds"] for r in ways["fused"])
        table += f"\n\nsplit over fused: {number(ratio)}; frames {_equality(ways)}"
    return table


def _equality(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    frames = [{r["seed"]: r["frames_xxh3"] for r in found} for found in ways.values()]
    same = sum(frames[1].get(seed) == checksum for seed, checksum in frames[0].items())
    return f"equal in {same} of {len(frames[0])} requests"


def _after(found: Sequence[Mapping[str, Any]]) -> str:
    return number(median(r["stages"]["pixels"] + r["stages"]["save"] for r in found)) if found else ""


def _middle(found: Sequence[Mapping[str, Any]], *path: str, by: float = 1.0) -> str:
    values = []
    for record in found:
        value: Any = record
        for name in path:
            value = value[name]
        values.append(value / by)
    return number(median(values)) if values else ""


def _memory(records: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        held = record.get("gpu_bytes")
        if record["part"] == "fused memory":
            rows.append(["fused", _gib(held), _gib(record["gpu_bytes_in_all"])])
        elif record["part"] == "split memory":
            rows += [[role, _gib(nbytes), ""] for role, nbytes in (held or {}).items()]
            rows.append(["the three roles", "", _gib(record["gpu_bytes_in_all"])])
    return markdown(("process", "GPU memory, GiB", "of all processes, GiB"), rows) if rows else ""


def _gib(nbytes: int | None) -> str:
    return "" if not nbytes else number(nbytes / GIB)


def _hops(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            record["what"],
            record["slots"],
            number(record["bytes"] / 1e6),
            *(
                number(record[part] * 1e3) if part in record else ""
                for part in ("put", "fetch", "upload", "total")
            ),
        ]
        for record in records
        if record["part"] == "hop"
    ]
    heading = ("hop of", "slots", "MB", "put, ms", "fetch, ms", "upload, ms", "in all, ms")
    return markdown(heading, rows) if rows else ""
