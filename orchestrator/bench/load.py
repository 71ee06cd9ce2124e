"""The two kinds of load: clients that wait for their answer, and requests that come when they come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.bench.outcome import Outcome, stages_of
from orchestrator.client import ClientError, VideoClient

CLEAN_UP_SECONDS = 5.0
TOO_MANY = "too many in flight"


@dataclass(frozen=True)
class Plan:
    """``concurrency`` clients, each with one request at a time (closed loop), or a ``rate`` of requests per
    second whose gaps are exponentially distributed (open loop, a Poisson process). Exactly one is given.
    """

    requests: int | None  # so many,
    seconds: float | None  # or for so long: what comes first; one of them is given
    concurrency: int | None = None
    rate: float | None = None
    max_in_flight: int = 1000  # of an open loop; what comes on top is a failure, and is not sent
    timeout: float = 3600.0  # of a request, in seconds
    poll: float = 0.25
    delete: bool = False  # each video, once its time was taken
    gaps_seed: int = 0


class Load:
    """Sends requests by a plan; ``on_end`` gets the outcome of each."""

    def __init__(
        self,
        client: VideoClient,
        plan: Plan,
        prompts: Sequence[str],
        fields: Mapping[str, Any],
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._client = client
        self._plan = plan
        self._prompts = prompts
        self._fields = dict(fields)
        self._on_end = on_end
        self._started = time.monotonic()
        self._unfinished: set[str] = set()
        self.in_flight = 0
        self.outcomes: list[Outcome] = []

    async def run(self) -> None:
        """Returns when the last request has ended. Cancelled, it deletes the jobs that have not."""
        self._started = time.monotonic()
        try:
            if self._plan.rate is None:
                await self._closed(self._plan.concurrency or 1)
            else:
                await self._open(self._plan.rate)
        except asyncio.CancelledError:
            await self._delete_unfinished()
            raise

    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._started

    async def _closed(self, concurrency: int) -> None:
        numbers = self._numbers()

        async def one_client() -> None:
            for number in numbers:
                await self._request(number, self.now())

        async with _all_or_none() as start:
            for _ in range(concurrency):
                start(one_client())

    async def _open(self, rate: float) -> None:
        chance = random.Random(self._plan.gaps_seed)
        due = 0.0
        async with _all_or_none() as start:
            for number in self._numbers():
                await asyncio.sleep(due - self.now())
                if self.in_flight < self._plan.max_in_flight:
                    start(self._request(number, due))
                else:
                    self._end(Outcome(number, due, self.now(), None, self.now(), failure=TOO_MANY))
                due += chance.expovariate(rate)

    def _numbers(self) -> Iterator[int]:
        """Shared by all clients; ends with the plan."""
        for number in itertools.count():
            if number == self._plan.requests:
                return
            if self._plan.seconds is not None and self.now() >= self._plan.seconds:
                return
            yield number

    async def _request(self, number: int, due: float) -> None:
        self.in_flight += 1
        sent, accepted, video_id, failure = self.now(), None, None, None
        stages: dict[str, float] = {}
        try:
            video = await self._client.create(
                prompt=self._prompts[number % len(self._prompts)], **self._fields_of(number)
            )
            accepted, video_id = self.now(), str(video["id"])
            self._unfinished.add(video_id)
            poll = (self._plan.poll, self._plan.poll)
            video = await self._client.wait(video_id, timeout=self._plan.timeout, poll=poll)
            self._unfinished.discard(video_id)
            if video["status"] == "failed":
                failure = f"failed: {_code(video.get('error'))}"
            stages = stages_of(video)
        except ClientError as error:
            failure = _reason(error, accepted is not None)
        except (LookupError, TypeError) as error:
            failure = f"a reply that is no video: {error!r}"
        finally:
            self.in_flight -= 1
        self._end(Outcome(number, due, sent, accepted, self.now(), video_id, failure, stages))
        if self._plan.delete and video_id is not None:
            with contextlib.suppress(ClientError):  # it may be gone already; the load goes on
                await self._client.delete(video_id)

    def _fields_of(self, number: int) -> dict[str, Any]:
        """Equal requests could be answered from a cache: with a seed, each has one of its own."""
        if "seed" not in self._fields:
            return self._fields
        return {**self._fields, "seed": self._fields["seed"] + number}

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._on_end(outcome)

    async def _delete_unfinished(self) -> None:
        deletions = [self._client.delete(video_id) for video_id in self._unfinished]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*deletions, return_exceptions=True), CLEAN_UP_SECONDS)


def _code(error: object) -> str:
    return str(error.get("code") or error.get("message")) if isinstance(error, Mapping) else "no reason given"


def _reason(error: ClientError, accepted: bool) -> str:
    """Short, so that equal reasons count together."""
    if error.status is None:
        return "timed out" if accepted else "no connection"
    code = f" {error.code}" if error.code else ""
    return f"{'lost' if accepted else 'refused'}: {error.status}{code}"


@contextlib.asynccontextmanager
async def _all_or_none() -> AsyncIterator[Callable[[Any], None]]:
    """Waits for the tasks that were started within; when one raises or this is cancelled, all are."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        yield lambda coroutine: tasks.add(asyncio.ensure_future(coroutine))
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
