"""A short form of the chaos run; ``make chaos`` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests import chaos


def test_nothing_is_lost_under_chaos(tmp_path: Path) -> None:
    report = chaos.run(seed=11, seconds=60.0, directory=tmp_path)
    assert report.clean, f"{report}\n{(tmp_path / 'log').read_text()[-100_000:]}"
    assert len(report.faults) >= 3 and report.played and report.deleted
