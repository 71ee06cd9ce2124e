"""The roles this orchestrator talks to: one entry for each endpoint URL, filled only from its own stream."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from transfer.peers import PeerTable
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2_grpc import RoleStub

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)  # between attempts to reach a role; then always the last
MAX_COMMANDS_PER_FRAME = 256
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 2_000),  # a silent host is noticed within time + timeout
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without it a frozen peer is noticed after a minute only
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # roles are addressed directly
)


class State(enum.Enum):
    """Of a peer, as operators see it."""

    CONNECTING = "connecting"  # not reached yet, or not answering
    READY = "ready"
    DRAINING = "draining"
    REFUSED = "refused"  # reached, but it is not what was expected at this URL


class Life:
    """One incarnation of a peer on one stream: all that is known of it came over that stream.

    What refers to a life ends with it. Nothing else can name its slots: ``as_input`` puts together URL,
    incarnation, transfer endpoints and slot from this one entry.
    """

    def __init__(self, url: EndpointURL, hello: pb.Hello) -> None:
        self.url = url
        self.role = hello.role
        self.incarnation = hello.incarnation
        self.model = hello.model
        self.capacity = hello.capacity
        self.endpoints = tuple(hello.endpoints)
        self.pools = tuple(hello.pools)
        self.traffic: tuple[pb.Traffic, ...] = ()
        self.choices: tuple[pb.Choice, ...] = ()
        self.resident_bytes = 0
        self.draining = False
        self.tasks: set[str] = set()  # dispatched to it and not finished
        self.dispatched = 0
        self._commands: deque[pb.Command] = deque()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"{self.role} {self.url} ({self.incarnation})"

    @property
    def free(self) -> int:
        """Tasks it can take now."""
        return 0 if self.draining else max(self.capacity - len(self.tasks), 0)

    def send(self, command: pb.Command) -> None:
        """Queues a command. Commands are bounded by the tasks and outputs of this life."""
        self._commands.append(command)
        self._changed.set()

    def as_input(self, done: pb.Done) -> pb.Input:
        """Where the output lies that this life reported with ``done``."""
        return pb.Input(
            task_id=done.task_id,
            url=str(self.url),
            incarnation=self.incarnation,
            endpoints=self.endpoints,
            slot=done.slot,
        )

    async def frames(self) -> AsyncIterator[pb.Commands]:
        """What is to be sent, batched."""
        while True:
            self._changed.clear()
            if not self._commands:
                await self._changed.wait()
                continue
            releases: list[str] = []
            commands: list[pb.Command] = []
            for _ in range(min(len(self._commands), MAX_COMMANDS_PER_FRAME)):
                command = self._commands.popleft()
                if command.HasField("release"):
                    releases += command.release.task_ids
                else:
                    commands.append(command)
            if releases:
                commands.append(pb.Command(release=pb.Release(task_ids=releases)))
            yield pb.Commands(commands=commands)


class Listener(Protocol):
    """Hears what happens on the streams. Called on the event loop."""

    def refusal(self, life: Life) -> str:
        """A role introduced itself; returns why it does not belong here, or nothing."""

    def joined(self, life: Life, hello: pb.Hello) -> None:
        """It was not refused and can be given work."""

    def left(self, life: Life) -> None:
        """Its stream ended: nothing more will come from this life."""

    def received(self, life: Life, event: pb.Event) -> None: ...


class Peer:
    """One configured endpoint: dials it for ever, and has at most one life at a time."""

    def __init__(self, url: EndpointURL, role: str, listener: Listener) -> None:
        self.url = url
        self.role = role
        self.life: Life | None = None
        self.refusal = ""
        self._listener = listener
        self._channel = grpc.aio.insecure_channel(url.target, options=CHANNEL_OPTIONS)
        self._stub = RoleStub(self._channel)
        self._dialling = asyncio.create_task(self._dial(), name=f"dial {url}")

    @property
    def state(self) -> State:
        if self.life is not None:
            return State.DRAINING if self.life.draining else State.READY
        return State.REFUSED if self.refusal else State.CONNECTING

    async def close(self) -> None:
        self._dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._dialling
        await self._channel.close()

    async def read_file(self, name: str, offset: int, length: int) -> AsyncIterator[bytes]:
        """The bytes of a file that this decoder wrote; AioRpcError if it cannot be had."""
        async for chunk in self._stub.ReadFile(pb.ReadFileRequest(name=name, offset=offset, length=length)):
            yield chunk.data

    async def delete_file(self, name: str) -> None:
        await self._stub.DeleteFile(pb.DeleteFileRequest(name=name), timeout=10.0)

    async def _dial(self) -> None:
        failures = 0
        while True:
            try:
                failures = 0 if await self._attach() else failures + 1
            except grpc.aio.AioRpcError as error:
                if failures == 0:
                    log.info("%s at %s: %s, trying again", self.role, self.url, _reason(error))
                failures += 1
            except Exception:
                # Whatever a peer sends ends at most its own stream.
                log.exception("%s at %s: its stream was closed", self.role, self.url)
                failures += 1
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])

    async def _attach(self) -> bool:
        """One stream, from its Hello to its end; returns whether there was a life."""
        stream = self._stub.Attach()
        try:
            first = await stream.read()
            if not isinstance(first, pb.Events):
                return False
            hello, events = _split_hello(first)
            life = Life(self.url, hello)
            refusal = self._refusal(hello) or self._listener.refusal(life)
            if refusal and refusal != self.refusal:
                log.error("%s at %s is refused: %s", self.role, self.url, refusal)
            self.refusal = refusal
            if refusal:
                return False
            self.life = life
            log.info("%s joined with %s", life, life.model.name)
            writer = asyncio.create_task(_write(stream, life))
            try:
                self._listener.joined(life, hello)
                while True:
                    for event in events:
                        self._listener.received(life, event)
                    frame = await stream.read()
                    if not isinstance(frame, pb.Events):
                        return True
                    events = list(frame.events)
            finally:
                writer.cancel()
                self.life = None
                log.info("%s left", life)
                self._listener.left(life)
        finally:
            stream.cancel()

    def _refusal(self, hello: pb.Hello) -> str:
        if hello.role != self.role:
            return f"expected a role of kind {self.role!r}, found {hello.role!r}"
        if not hello.incarnation or not hello.capacity or not hello.model.name:
            return "its Hello lacks incarnation, capacity or model"
        return ""


class Peers(PeerTable[Peer]):
    """All configured peers, in the order of their URLs."""

    def lives(self) -> list[Life]:
        return [peer.life for peer in self.values() if peer.life is not None]

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self.values()))


async def _write(stream: grpc.aio.StreamStreamCall[pb.Commands, pb.Events], life: Life) -> None:
    # A failed write means the stream has ended, which the reading side sees too.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async for frame in life.frames():
            await stream.write(frame)


def _reason(error: grpc.aio.AioRpcError) -> str:
    # The details of a refused connection are a paragraph of gRPC's innards.
    return "not reachable" if error.code() is grpc.StatusCode.UNAVAILABLE else str(error.details())


def _split_hello(frame: pb.Events) -> tuple[pb.Hello, list[pb.Event]]:
    if not frame.events or not frame.events[0].HasField("hello"):
        raise ValueError("the first event of its stream is not Hello")
    return frame.events[0].hello, list(frame.events[1:])
