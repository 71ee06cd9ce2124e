"""The page of the benchmarks says what was measured: its tables are those of the JSON lines beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.page.__main__ import FOLDER, PAGE, filled
from benchmarks.page.goals import ROWS
from benchmarks.page.results import records, report
from benchmarks.requests.rows import TOPIC as REQUESTS
from benchmarks.row import Goal, Report, Round, Row
from benchmarks.scheduler.__main__ import TOPIC as SCHEDULER
from benchmarks.split.__main__ import TOPIC as SPLIT


def test_the_page_is_that_of_the_results() -> None:
    assert filled(PAGE.read_text(), FOLDER) == PAGE.read_text()


def test_every_topic_was_measured_and_has_its_figure() -> None:
    topics = {path.stem for path in FOLDER.glob("*.jsonl")} - {"gpu"}  # that has a page of its own
    assert topics == {"requests", "floor", "peers", "transfer", "split", "scheduler", "faults"}
    for topic in topics:
        assert (FOLDER / f"{topic}.svg").exists()
        for record in records(FOLDER, topic):
            assert re.fullmatch(r"[0-9a-f]{7,}", record["commit"]), "measured from files that nobody has"
            assert not record.get("quick") and not record.get("short")
    figures = set(re.findall(r"\]\(benchmarks/(\w+)\.svg\)", PAGE.read_text()))
    assert figures == topics


def test_every_row_with_a_goal_is_among_the_goals() -> None:
    for topic in (REQUESTS, SCHEDULER, SPLIT):
        assert {(topic.name, row.name) for row in topic.rows if row.goal is not None} <= set(ROWS)


def test_a_record_is_read_back_as_it_was() -> None:
    row = Row("tiny", "what", Goal(5, "ms"), lambda effort: iter(()))
    written = Report(row, [Round(1.0, {"a": 1}), Round(9.0, {"a": 2})], 0.5, 0.25)
    read = report(json.loads(json.dumps(written.record("requests"))))
    assert read.line() == written.line() and read.rounds == written.rounds and read.met is True


def test_goals_that_are_missed_or_not_measured_are_said_to_be(tmp_path: Path) -> None:
    row = Row("tiny", "what", Goal(5, "ms"), lambda effort: iter(()))
    record = Report(row, [Round(7.0)], 0.0, 0.0).record("requests")
    facts = {"commit": "abc1234", "date": "2026-01-02T00:00", "cpu": "x", "cores": 2, "memory_bytes": 1 << 30}
    line = json.dumps({**record, **facts, "kernel": "6", "versions": {"python": "3"}})
    (tmp_path / "requests.jsonl").write_text(line)
    page = filled(PAGE.read_text(), tmp_path)
    assert re.search(r"one client, p50 +\| <= 5 ms +\| +7.00 ms \|.*\*\*not met\*\*", page)
    assert page.count("not measured") == len(ROWS) - 1
    with pytest.raises(ValueError, match="no place for the table 'goals'"):
        filled("# Benchmarks\n", tmp_path)
