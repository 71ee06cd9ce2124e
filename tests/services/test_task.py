"""What a task tells of its progress."""

from __future__ import annotations

import pytest

from services import task
from services.task import REPORT_SECONDS, TaskControl


def test_steps_are_told_no_more_often_than_the_loop_should_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(task, "REPORT_SECONDS", 1.0)
    monkeypatch.setattr(task.time, "monotonic", lambda: now)
    told: list[tuple[int, int]] = []
    control = TaskControl(lambda step, total: told.append((step, total)))
    for step in range(1, 41):
        now += 0.25
        control.progress(step, 40)
    assert told == [(step, 40) for step in range(4, 41, 4)]


def test_slow_steps_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(task.time, "monotonic", lambda: now)
    told: list[int] = []
    control = TaskControl(lambda step, total: told.append(step))
    for step in range(1, 6):
        now += 2 * REPORT_SECONDS
        control.progress(step, 5)
    assert told == [1, 2, 3, 4, 5]
