"""The figures of the benchmarks: drawn from what a run has written, the same from the same lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots.__main__ import main

FACTS = {
    "cpu": "a CPU", "cores": 2, "memory_bytes": 1 << 34, "commit": "abc1234",
    "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
FIGURES = {"one": {"p50": 2.0, "rate": 9.0}, "many": {"p50": 3.0, "rate": 20.0}}
CPU = {"encoder": 0.5, "denoiser": 0.5, "decoder": 2.0, "client": 0.5}
BOTH = {
    "floor": {"p50": 5.0, "rate": 300.0, "cpu": {"server": 2.0, **CPU}},
    "triptych": {"p50": 14.0, "rate": 100.0, "cpu": {"orchestrator": 6.0, **CPU}},
}
VIDEO = {
    "floor": {"server": 7.0, "cpu": {"server": 7.0, **CPU}},
    "triptych": {"server": 19.0, "cpu": {"orchestrator": 19.0, **CPU}},
}
PARTS = {name: {"ms": 1.0, "cpu": 1.0} for name in ("http", "commits", "stream", "file", "encode", "sum")}
SPREAD = {"median": 0.002, "p10": 0.001, "p90": 0.003}


def row(name: str, *raw: dict[str, Any], **fields: Any) -> dict[str, Any]:
    numbers = {"measured": 2.0, "lowest": 1.0, "highest": 4.0, "unit": "ms", "goal": 0.97, "at_least": False}
    rounds = [{"value": 0.99, "raw": one} for one in raw]
    return {**FACTS, **numbers, "row": name, "what": name, "met": True, "rounds": rounds, **fields}


LINES = {
    "requests": [row("tiny", {}), row("rate", {}, at_least=True, met=False)],
    "floor": [row("one", BOTH, BOTH), row("rate", BOTH), row("parts", PARTS)],
    "peers": [row("tiny", {"triptych": FIGURES, "mosec": FIGURES}, {"triptych": FIGURES, "mosec": FIGURES})],
    "transfer": [
        {**FACTS, "name": name, "nbytes": nbytes, "total": SPREAD}
        for name in ("memcpy", "shm")
        for nbytes in (1000, 10**6)
    ],
    "split": [
        row("latency", {"split": 2.0, "fused": 1.9}),
        row("throughput", {"split": 0.5, "fused": 0.6}),
        row("memory", {"small": {"encoder": 10**8, "fused": 10**8}, "large": {"encoder": 2e8, "fused": 2e8}}),
    ],
    "scheduler": [row("queue-4", {"100": {"rate": 9.0}, "1000": {"rate": 8.0}}), row("1:4:1", {})],
    "faults": [row("triptych", {"ends": [-2.0, -1.5, 0.5, 3.0], "failures": ["x"]})],
}


# Measured with the rows that came later.
MORE = {"floor": [*LINES["floor"], row("tensors", BOTH), row("cpu", VIDEO, VIDEO)]}


@pytest.mark.parametrize("lines", [*LINES.items(), *MORE.items()], ids=lambda lines: lines[0])
def test_a_figure_for_each_topic(lines: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    topic, records = lines
    (tmp_path / f"{topic}.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main([str(tmp_path)]) == 0
    first = (tmp_path / f"{topic}.svg").read_bytes()
    assert b"<svg" in first and [path.suffix for path in tmp_path.iterdir()].count(".svg") == 1
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / f"{topic}.svg").read_bytes() == first


def test_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "requests.jsonl" in capsys.readouterr().err
