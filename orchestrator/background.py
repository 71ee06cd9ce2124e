"""Work that goes on beside the requests, until the orchestrator stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5  # between two cancels of a task that goes on


class Background:
    """Tasks that somebody holds on to: asyncio itself does not. One that fails says so in the log."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def finish(self, name: str, seconds: float) -> None:
        """Gives those of the name so much time to end by themselves."""
        tasks = [task for task in self._tasks if task.get_name() == name]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        await end(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task failed", exc_info=task.exception())


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels the tasks until all have ended.

    Once is not enough before Python 3.12: ``asyncio.wait_for`` drops a cancel that comes in the moment in
    which what it waits for is done, and a loop goes on for ever then: github.com/python/cpython/issues/86296.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
