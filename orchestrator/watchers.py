"""Who waits for a job to change, and is told when it does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watchers:
    """Everything happens on one event loop. Of changes that come faster than a watcher looks, it sees one."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._events.values()))

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """The event is set whenever the job has changed or is gone. Clear it, then look, then wait."""
        changed = asyncio.Event()
        self._events.setdefault(job_id, set()).add(changed)
        try:
            yield changed
        finally:
            others = self._events[job_id]
            others.discard(changed)
            if not others:
                del self._events[job_id]

    def notify(self, job_id: str) -> None:
        for changed in self._events.get(job_id, ()):
            changed.set()
