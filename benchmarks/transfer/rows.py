"""The ways to get a tensor across, as functions that do it once and say how long it took.

Each checks every byte that arrived, outside of the time.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from benchmarks.transfer import buffers, plain
from benchmarks.transfer.buffers import Rotation
from benchmarks.transfer.producer import MOONCAKE, TIMEOUT, URL, Producer
from transfer import memory
from transfer.endpoint import Received, TransferEndpoint
from transfer.pool import arena_bytes
from transfer.urls import EndpointURL

FLOOR = "memcpy"
ENGINES = ("shm", "zmq", "mooncake")
PLAIN_ZMQ, PLAIN_MOONCAKE = "plain-zmq", "plain-mooncake"

_OURS = EndpointURL.parse("grpc://127.0.0.1:30102")


@dataclass(frozen=True)
class Sample:
    """The seconds of one transfer, and of its two halves where it has them."""

    total: float
    put: float | None = None
    fetch: float | None = None


Row: TypeAlias = Callable[[int], Awaitable[Sample]]


class Bench:
    """The process where tensors arrive. `rows` are by name; each takes the number of its turn."""

    def __init__(self, rotations: Sequence[Rotation], producer: Producer) -> None:
        self.rows: dict[str, Row] = {FLOOR: self._memcpy}
        self.targets = buffers.region(rotations)
        self._sources = buffers.region(rotations)  # what the producer has, byte for byte
        self._rotation = rotations[0]
        self._producer = producer
        self._received: deque[Received] = deque()

    async def turn_to(self, rotation: Rotation) -> None:
        """From here on tensors of this size are sent."""
        while self._received:
            self._received.popleft().release()
        self.targets.zero_()
        self._rotation = rotation
        await self._producer.turn_to(rotation)

    def add_engine(self, name: str, endpoint: TransferEndpoint, incarnation: str) -> None:
        """Adds the row of an engine of `endpoint`; `incarnation` is the producer's."""
        addresses = [address for address in self._producer.addresses if address.engine == name]

        async def row(turn: int) -> Sample:
            put, location = await self._producer.put(name, turn)
            if len(self._received) == self._rotation.count:
                self._received.popleft().release()
            started = time.monotonic()
            received = await endpoint.fetch(URL, incarnation, addresses, location, TIMEOUT)
            fetch = time.monotonic() - started
            self._received.append(received)
            tensor = received.values["tensor"]
            assert isinstance(tensor, torch.Tensor)
            self.check(name, turn, tensor)
            return Sample(put + fetch, put, fetch)

        self.rows[name] = row

    def add_plain_zmq(self, receiver: plain.ZmqReceiver) -> None:
        async def row(turn: int) -> Sample:
            target = self._rotation.pick(self.targets, turn)
            arriving = asyncio.ensure_future(asyncio.to_thread(receiver.receive, target))
            try:
                started = await self._producer.send_by_zmq(turn, receiver.address)
            finally:
                arrived = await arriving
            self.check(PLAIN_ZMQ, turn, target)
            return Sample(arrived - started)

        self.rows[PLAIN_ZMQ] = row

    def add_plain_mooncake(self, session: str) -> None:
        """`session` names an engine of ours that knows `targets`."""

        async def row(turn: int) -> Sample:
            target = self._rotation.pick(self.targets, turn)
            seconds = await self._producer.write_by_mooncake(turn, session, target.data_ptr())
            self.check(PLAIN_MOONCAKE, turn, target)
            return Sample(seconds)

        self.rows[PLAIN_MOONCAKE] = row

    async def _memcpy(self, turn: int) -> Sample:
        target = self._rotation.pick(self.targets, turn)
        into, source = buffers.view(target), buffers.view(self._rotation.pick(self._sources, turn))
        started = time.monotonic()
        memory.copy(into, source)
        seconds = time.monotonic() - started
        self.check(FLOOR, turn, target)
        return Sample(seconds)

    def check(self, name: str, turn: int, arrived: torch.Tensor) -> None:
        """Raises RuntimeError unless `arrived` is what the producer sends at this turn."""
        if not torch.equal(arrived, self._rotation.pick(self._sources, turn)):
            raise RuntimeError(f"{name}: turn {turn} of {self._rotation.nbytes} bytes arrived changed")


@contextlib.asynccontextmanager
async def open_bench(names: Sequence[str], rotations: Sequence[Rotation]) -> AsyncIterator[Bench]:
    """A producer and a consumer with a row for each of `names`, and the floor; nothing outlives it."""
    incarnation = secrets.token_hex(8)
    engines = [name for name in ENGINES if name in names]
    room = max(arena_bytes(rotation.count, rotation.nbytes) for rotation in rotations)
    async with contextlib.AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(incarnation, engines, rotations))
        bench = Bench(rotations, producer)
        endpoint = await TransferEndpoint.start(
            _OURS, secrets.token_hex(8), 1, room, engines, mooncake=MOONCAKE
        )
        stack.push_async_callback(endpoint.close)
        for name in engines:
            bench.add_engine(name, endpoint, incarnation)
        if PLAIN_ZMQ in names:
            bench.add_plain_zmq(stack.enter_context(contextlib.closing(plain.ZmqReceiver(TIMEOUT))))
        if PLAIN_MOONCAKE in names:
            mooncake = stack.enter_context(contextlib.closing(plain.Mooncake(bench.targets)))
            bench.add_plain_mooncake(mooncake.session)
        yield bench
