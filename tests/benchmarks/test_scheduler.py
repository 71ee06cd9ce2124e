"""The benchmark of the scheduler: long queues, emulated instances, ratios of roles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scheduler.__main__ import TOPIC
from benchmarks.scheduler.decisions import Bench
from benchmarks.scheduler.ratio import Ratio

ROOT = Path(__file__).parents[2]


async def test_the_scheduler_alone_does_every_job() -> None:
    bench = Bench(depth=30)
    assert await bench.run(45) > 0


@pytest.mark.parametrize(
    ("counts", "sleeps", "bound"),
    [((1, 1, 1), (0.05, 0.4, 0.1), 2.5), ((1, 4, 1), (0.05, 0.4, 0.05), 10), ((1, 8, 1), (0.2, 0.4, 0.1), 5)],
)
def test_the_bound_is_that_of_the_slowest_stage(
    counts: tuple[int, int, int], sleeps: tuple[float, float, float], bound: float
) -> None:
    assert Ratio(counts, sleeps).bound == pytest.approx(bound)


def test_a_quick_run_measures_every_depth_and_ratio(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    rows = ["queue-4", "1:1:1"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scheduler", "--quick", "--json", str(lines), *rows],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    queue, ratio = map(json.loads, lines.read_text().splitlines())
    for one in queue["rounds"]:
        seen = one["raw"]
        assert list(seen) == ["100", "1000"] and all(at["rate"] > 0 and at["cpu"] > 0 for at in seen.values())
        assert one["value"] == pytest.approx(seen["1000"]["rate"] / seen["100"]["rate"], rel=1e-3)
    for one in ratio["rounds"]:
        assert 0 < one["value"] <= 1.05 and min(one["raw"]["denoise"]) >= 0.4
    assert "orchestrator CPU ms a request" in run.stdout


def test_a_short_run_measures_rows_that_there_are() -> None:
    assert set(TOPIC.short) <= {row.name for row in TOPIC.rows}
