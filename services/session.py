"""One orchestrator's stream to this role: the events that wait to be sent on it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

from triptych_proto.control_pb2 import Event, Events

log = logging.getLogger(__name__)

# A gRPC message costs about 0.2 ms of CPU on either side, however small, so frames that carry nothing
# but progress are sent at most this often; anything else takes waiting progress along at once.
PROGRESS_INTERVAL = 0.2
# That inputs have arrived frees a slot elsewhere, which can wait for a moment: fast tasks end in the
# meantime, and then one frame says both.
PATIENT = frozenset({"progress", "input_ready"})
PATIENT_SECONDS = 0.02
MAX_EVENTS_PER_FRAME = 256
MAX_FRAME_BYTES = 1 << 20  # once reached, the next event begins a new frame
MAX_EVENTS_WAITING = 65_536  # an orchestrator that makes us answer and does not read the answers is cut off


class Session:
    """Collects events and hands them out in frames, in order.

    A newer ``Progress`` of a task replaces an older one that has not left yet, so the queue is bounded by
    the number of tasks.
    """

    def __init__(self) -> None:
        self.on_close: Callable[[], object] = lambda: None
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._last_progress = 0.0
        self.closed = False
        self.taken_by_others = 0  # as the other side was told last

    def send(self, event: Event) -> None:
        """Queues ``event``; on a closed session it is dropped, the next Hello tells what matters."""
        if self.closed:
            return
        if event.HasField("progress"):
            for i in range(len(self._events) - 1, -1, -1):
                waiting = self._events[i]
                if waiting.HasField("progress") and waiting.progress.task_id == event.progress.task_id:
                    self._events[i] = event
                    return
        if len(self._events) >= MAX_EVENTS_WAITING:
            log.warning("an orchestrator does not read what it asked for: its stream is closed")
            self.close()
            return
        self._events.append(event)
        self._changed.set()

    def close(self) -> None:
        """No more events; frames() ends, and ``on_close`` is called soon."""
        if not self.closed:
            asyncio.get_running_loop().call_soon(self.on_close)
        self.closed = True
        self._changed.set()

    async def frames(self) -> AsyncIterator[Events]:
        loop = asyncio.get_running_loop()
        since: float | None = None  # something patient waits
        while not self.closed:
            self._changed.clear()
            if not self._events:
                await self._changed.wait()
                continue
            kinds = {event.WhichOneof("event") for event in self._events}
            if kinds <= PATIENT:
                since = loop.time() if since is None else since
                until = since + PATIENT_SECONDS
                if kinds == {"progress"}:
                    until = max(until, self._last_progress + PROGRESS_INTERVAL)
                if until > loop.time():
                    timer = loop.call_at(until, self._changed.set)
                    try:
                        await self._changed.wait()
                    finally:
                        timer.cancel()
                    continue
            if "progress" in kinds:
                self._last_progress = loop.time()
            since = None
            yield Events(events=self._take())

    def _take(self) -> list[Event]:
        """What goes into the next frame."""
        taken: list[Event] = []
        nbytes = 0
        while self._events and len(taken) < MAX_EVENTS_PER_FRAME and nbytes < MAX_FRAME_BYTES:
            taken.append(self._events.popleft())
            nbytes += taken[-1].ByteSize()
        return taken
