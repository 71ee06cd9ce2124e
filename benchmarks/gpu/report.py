"""What was measured on a GPU, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu.equal import KINDS, MODULAR
from benchmarks.gpu.fused import PIPELINES
from benchmarks.gpu.model import Work
from benchmarks.table import markdown, number

GIB = 1 << 30
STAGES = ("encode", "denoise", "decode")


def tables(records: Sequence[Mapping[str, Any]], work: Work) -> str:
    """Medians; what was not measured is left out."""
    shown = [_stages(records, work), _equal(records), _memory(records), _roles(records), _hops(records)]
    return "\n\n".join(table for table in shown if table)


def _stages(records: Sequence[Mapping[str, Any]], work: Work) -> str:
    named = {**{name: part for part, name in PIPELINES.items()}, "split": "split"}
    ways = {name: [r for r in records if r["part"] == part] for name, part in named.items()}
    ways = {name: found for name, found in ways.items() if found}
    if not ways:
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
    rows.append(["pixels and file after the last frame, s", *map(_after, ways.values())])
    for stage in STAGES[1:]:
        cells = [
            _middle(found, "reads", stage, by=1e-3) if "reads" in found[0] else "" for found in ways.values()
        ]
        rows.append([f"reading the input of {stage}, ms", *cells])
    lines = [markdown(("what", *ways), rows)]
    split = ways.pop("split", None)
    if split:
        for name, found in ways.items():
            ratio = median(r["seconds"] for r in split) / median(r["seconds"] for r in found)
            lines.append(f"split over {name}: {number(ratio)}; {_same(split, found)}")
    return "\n\n".join(lines)


def _same(split: Sequence[Mapping[str, Any]], fused: Sequence[Mapping[str, Any]]) -> str:
    expected = {record["seed"]: record["frames_xxh3"] for record in fused}
    seeds = [record["seed"] for record in split if record["seed"] in expected]
    same = sum(record["frames_xxh3"] == expected.get(record["seed"]) for record in split)
    return f"frames equal in {same} of {len(seeds)} requests"


def _after(found: Sequence[Mapping[str, Any]]) -> str:
    if "save" in found[0]:
        return _middle(found, "save")
    return number(median(r["stages"]["pixels"] + r["stages"]["save"] for r in found))


def _middle(found: Sequence[Mapping[str, Any]], *path: str, by: float = 1.0) -> str:
    values = []
    for record in found:
        value: Any = record
        for name in path:
            value = value[name]
        values.append(value / by)
    return number(median(values)) if values else ""


def _equal(records: Sequence[Mapping[str, Any]]) -> str:
    """The largest difference of each kind, from what the roles made in the same process."""
    rows = [
        [
            record["way"],
            record["first"] or "none",
            *(f"{difference:.3g}" if difference else "equal" for difference in record["difference"].values()),
        ]
        for record in records
        if record["part"] == "equal"
    ]
    if not rows:
        return ""
    lines = [markdown(("against the roles", "first difference", *KINDS), rows)]
    split = [r for r in records if r["part"] == "split"]
    if modular := [r for r in records if r["part"] == "equal" and r["way"] == MODULAR and split]:
        lines.append(f"the split over HTTP against {MODULAR} there: {_same(split, modular)}")
    return "\n\n".join(lines)


def _memory(records: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for record in records:
        held = record.get("gpu_bytes")
        part = record["part"].removesuffix(" memory")
        if part in PIPELINES and part != record["part"]:
            rows.append([PIPELINES[part], _gib(held), _gib(record["gpu_bytes_in_all"])])
        elif record["part"] == "split memory":
            rows += [[role, _gib(nbytes), ""] for role, nbytes in (held or {}).items()]
            rows.append(["the three roles", "", _gib(record["gpu_bytes_in_all"])])
    return markdown(("process", "GPU memory, GiB", "of all processes, GiB"), rows) if rows else ""


def _roles(records: Sequence[Mapping[str, Any]]) -> str:
    """As torch counts it: without what the driver and libraries take for themselves."""
    rows = [
        [record["role"], *(_gib(record[f"{what}_bytes"]) for what in ("weights", "run", "reserved"))]
        for record in records
        if record["part"] == "role memory"
    ]
    return (
        markdown(("role", "weights, GiB", "a run, GiB", "both as torch keeps it, GiB"), rows) if rows else ""
    )


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
