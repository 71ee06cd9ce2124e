"""The benchmark for GPUs, where it can run without one: tiny, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import equal, report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.model import FULL, SMALL, build_small

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "benchmarks" / "gpu.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("bench") / "model")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(records: list[dict[str, Any]], part: str) -> dict[str, Any]:
    (record,) = [record for record in records if record["part"] == part]
    return record


def test_the_small_form_runs_without_a_gpu(tmp_path: Path) -> None:
    lines = tmp_path / "gpu.jsonl"
    words = ["--small", "--device", "cpu", "--hop-rounds", "2", "--json", str(lines)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "hop", "fused", "split", "equal", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    records = read(lines)
    split, fused = of(records, "split"), of(records, "fused")
    assert split["frames_xxh3"] == fused["frames_xxh3"]
    assert set(split["stages"]) == {"encode", "denoise", "decode"} <= set(fused["stages"])
    assert split["read_bytes"] == {"encode": 0, "denoise": 262_144, "decode": 8_192}
    assert {record["slots"] for record in records if record["part"] == "hop"} == {"none", "pageable"}
    assert all(record["gpu"] is None and record["small"] and record["commit"] for record in records)
    assert "split over WanModularPipeline" in done.stdout
    assert done.stdout.count("frames equal in 1 of 1 requests") == 2, "against each process's pipeline"
    assert [record["first"] for record in records if record["part"] == "equal"] == [None] * 4


def test_without_a_gpu_the_full_form_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu: there is no GPU here; --small runs without one\n"


def test_in_bfloat16_the_standard_pipeline_differs_by_its_rounding_alone(folder: Path) -> None:
    records = list(equal.measure(folder, SMALL, torch.device("cpu"), "bfloat16"))
    first = {record["way"]: record["first"] for record in records}
    assert first == {
        equal.AGAIN: None,
        equal.MODULAR: None,
        equal.STANDARD: "timestep of step 1",
        equal.ROUNDED: None,
    }
    assert len({record["frames_xxh3"] for record in records}) == 2
    assert all(record["frames_std"] > 5 for record in records), (
        "frames without content would hide differences"
    )
    table = report.tables(records, SMALL)
    assert "WanPipeline, rounding likewise" in table and "timestep of step 1" in table


def test_the_page_shows_what_was_measured() -> None:
    """Every table that is made from the records stands in the page."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    for line in report.tables(read(MEASURED), FULL).splitlines():
        assert line in page, line
