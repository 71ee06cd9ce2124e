"""A short form of the chaos run; ``make chaos`` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests import chaos


def test_nothing_is_lost_under_chaos(tmp_path: Path) -> None:
    report = chaos.run(seed=11, seconds=40.0, directory=tmp_path)
    assert report.clean, str(report)
    assert len(set(report.faults)) >= 3
