"""Since when models have had no instance of a role that their jobs need."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

MAX_REMEMBERED = 4096  # of models that are gone, too

Absent = tuple[str, str]  # role and model


class Absences:
    """Knows what it is told by ``note``."""

    def __init__(self, roles: Sequence[str], seconds: float) -> None:
        """``roles`` are those that each model needs. An absence is long after so many seconds."""
        self._roles = roles
        self._seconds = seconds
        self._since: dict[Absent, float] = {}  # monotonic

    def note(self, present: Iterable[Absent], wanted: Iterable[str]) -> None:
        """Which roles there are now, of which models; ``wanted`` are models that are needed, too."""
        here, now = set(present), time.monotonic()
        models = {model for _, model in (*here, *self._since)} | set(wanted)
        for key in [(role, model) for role in self._roles for model in models]:
            if key in here:
                self._since.pop(key, None)
            else:
                self._since.setdefault(key, now)
        while len(self._since) > MAX_REMEMBERED:
            del self._since[next(iter(self._since))]

    def long(self) -> Iterator[Absent]:
        """Those that were absent for too long."""
        now = time.monotonic()
        for key, since in list(self._since.items()):
            if now - since > self._seconds:
                yield key
