"""Tests for orchestrator.background."""

from __future__ import annotations

import asyncio
import logging

import pytest

from orchestrator import background
from orchestrator.background import Background


async def test_a_task_that_drops_a_cancel_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.01)
    dropped = 0

    async def work() -> None:
        nonlocal dropped
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                dropped += 1
                if dropped == 3:
                    raise

    tasks = Background()
    tasks.spawn(work())
    await asyncio.sleep(0)
    await tasks.close()
    assert dropped == 3


async def test_those_of_a_name_may_finish_before_the_rest_is_cancelled() -> None:
    ended = []

    async def work(name: str) -> None:
        await asyncio.sleep(0.01 if name == "save" else 3600)
        ended.append(name)

    tasks = Background()
    for name in ("save", "other"):
        tasks.spawn(work(name), name)
    await tasks.finish("save", 60)
    await tasks.close()
    assert ended == ["save"]


async def test_a_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise ValueError("no such thing")

    tasks = Background()
    with caplog.at_level(logging.ERROR):
        tasks.spawn(work(), "fails")
        await tasks.finish("fails", 60)
        await tasks.close()
    assert "no such thing" in caplog.text
