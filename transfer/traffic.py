"""What a process has moved, by engine and direction: counters for metrics."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from transfer.errors import TransferError


@dataclass
class Traffic:
    """Totals since the process started. Cancelled transfers count nowhere."""

    engine: str
    direction: str  # "in": read from peers; "out": put into a slot for peers
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


class Meter:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], Traffic] = {}

    @property
    def totals(self) -> list[Traffic]:
        return list(self._totals.values())

    @contextlib.contextmanager
    def measure(self, engine: str, direction: str, nbytes: int) -> Iterator[None]:
        """Counts the transfer inside, as a failure if it raises a TransferError."""
        total = self._totals.setdefault((engine, direction), Traffic(engine, direction))
        started = time.monotonic()
        try:
            yield
        except TransferError:
            total.failures += 1
            raise
        total.count += 1
        total.bytes += nbytes
        total.seconds += time.monotonic() - started
