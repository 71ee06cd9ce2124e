"""Clients in threads, each with one connection and one request at a time."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.peers.target import Reply, RequestError, Target, open_connection

AGAIN_SECONDS = 0.05  # until a client that got an error sends its next request


@dataclass(frozen=True)
class Sample:
    """A request; times are of the monotonic clock, in seconds."""

    started: float
    ended: float
    reply: Reply | None
    error: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def closed_loop(
    target: Target,
    clients: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """So many requests in all, or as many as can be sent in so many seconds; in the order of their ends."""
    numbers = itertools.count()
    samples: list[Sample] = []
    end = None if seconds is None else time.monotonic() + seconds

    def client() -> None:
        with contextlib.closing(open_connection(target)) as connection:
            for number in numbers:
                if requests is not None and number >= requests:
                    return
                started = time.monotonic()
                if end is not None and started >= end:
                    return
                reply, error = None, None
                try:
                    reply = target.request(connection, number)
                except RequestError as refused:
                    error = str(refused)
                sample = Sample(started, time.monotonic(), reply, error)
                samples.append(sample)
                on_sample(sample)
                if error is not None:
                    time.sleep(AGAIN_SECONDS)

    with ThreadPoolExecutor(clients) as threads:
        for running in [threads.submit(client) for _ in range(clients)]:
            running.result()
    return sorted(samples, key=lambda sample: sample.ended)


def rate(samples: list[Sample]) -> float:
    """Answers per second, between the first start and the last end."""
    return len(samples) / (samples[-1].ended - min(sample.started for sample in samples))
