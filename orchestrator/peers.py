"""The roles this orchestrator talks to: one entry for each endpoint URL, filled only from its own stream."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncGenerator
from typing import Protocol, TypeAlias

import grpc

from orchestrator import call_errors, validation
from orchestrator.credentials import Credentials
from orchestrator.life import Life
from orchestrator.validation import ContractBroken
from transfer.peers import PeerTable
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2_grpc import RoleStub

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)  # between attempts to reach a role; then always the last
# The same while a role breaks the contract: each time costs the requests that it was given a try.
BROKEN_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0)
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 2_000),  # a silent host is noticed within time + timeout
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),  # without it a frozen peer is noticed after a minute only
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", validation.MAX_FRAME_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # roles are addressed directly
)


class State(enum.Enum):
    """Of a peer, as operators see it."""

    CONNECTING = "connecting"  # not reached yet
    LOST = "lost"  # was there, and does not answer
    READY = "ready"
    DRAINING = "draining"
    REFUSED = "refused"  # reached, but it is not what was expected at this URL


AttachCall: TypeAlias = "grpc.aio.StreamStreamMultiCallable[pb.Commands, pb.Events | None]"


class Listener(Protocol):
    """Hears what happens on the streams. Called on the event loop."""

    def refusal(self, life: Life) -> str:
        """A role introduced itself; returns why it does not belong here, or nothing."""

    def joined(self, life: Life, hello: pb.Hello) -> None:
        """It was not refused and can be given work."""

    def left(self, life: Life) -> None:
        """Its stream ended: nothing more will come from this life."""

    def received(self, life: Life, event: pb.Event) -> None:
        """Raises ContractBroken for what this role may not say."""


class Peer:
    """One configured endpoint: dials it for ever, and has at most one life at a time."""

    def __init__(
        self, url: EndpointURL, role: str, listener: Listener, credentials: Credentials | None = None
    ) -> None:
        self.url = url
        self.role = role
        self.life: Life | None = None
        self.refusal = ""
        self.settled = asyncio.Event()  # the first attempt to reach it has ended, in whatever way
        self._met = False
        self._listener = listener
        self._refusal_told = ""
        credentials = credentials or Credentials()
        self._metadata = credentials.metadata
        self._channel = credentials.channel(url.target, CHANNEL_OPTIONS)
        self._stub = RoleStub(self._channel)
        self._attach_call: AttachCall = self._channel.stream_stream(
            "/triptych.v1.Role/Attach", pb.Commands.SerializeToString, validation.parse
        )
        self._dialling = asyncio.create_task(self._dial(), name=f"dial {url}")

    @property
    def state(self) -> State:
        if self.life is not None:
            return State.DRAINING if self.life.draining else State.READY
        if self.refusal:
            return State.REFUSED
        return State.LOST if self._met else State.CONNECTING

    async def close(self) -> None:
        self._dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._dialling
        await self._channel.close()

    async def read_file(self, name: str, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The ``length`` bytes of a file that this decoder wrote; AioRpcError if it cannot be had."""
        request = pb.ReadFileRequest(name=name, offset=offset, length=length)
        call = self._stub.ReadFile(request, metadata=self._metadata)
        try:
            async for chunk in call:
                yield chunk.data[:length]
                length -= len(chunk.data)
                if length <= 0:
                    return
        finally:
            call.cancel()  # or the decoder keeps the file open for a reader that has left

    async def delete_file(self, name: str) -> None:
        await self._stub.DeleteFile(pb.DeleteFileRequest(name=name), metadata=self._metadata, timeout=10.0)

    async def _dial(self) -> None:
        failures = breaches = 0
        while True:
            broken = False
            try:
                if await self._attach():
                    failures = breaches = 0
                else:
                    failures += 1
            except grpc.aio.AioRpcError as error:
                broken = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # a frame was too large
                refusal = call_errors.refusal(error)
                if refusal:
                    self._refuse(refusal)
                elif failures == 0:
                    log.info("%s at %s: %s, trying again", self.role, self.url, call_errors.reason(error))
                self.refusal = refusal
                failures += 1
            except ContractBroken as error:
                broken = True
                self._refuse(f"it breaks the contract: {error}")
            except Exception:
                # Whatever a peer sends ends at most its own stream.
                broken = True
                log.exception("%s at %s: its stream was closed", self.role, self.url)
            self.settled.set()
            pauses, count = (BROKEN_SECONDS, breaches) if broken else (RETRY_SECONDS, failures)
            breaches += broken
            await asyncio.sleep(pauses[min(count, len(pauses) - 1)])

    async def _attach(self) -> bool:
        """One stream, from its Hello to its end; returns whether there was a life."""
        stream = self._attach_call(metadata=self._metadata)
        try:
            first = await stream.read()
            if first is grpc.aio.EOF:
                return False
            events = validation.events(first, self.role, opening=True)
            hello = events.pop(0).hello
            life = Life(self.url, hello)
            refusal = self._mismatch(hello) or self._listener.refusal(life)
            if refusal:
                self._refuse(refusal)
                return False
            self.refusal = ""
            self.life = life
            self._met = True
            self.settled.set()
            log.info("%s joined with %s", life, life.model.name)
            writer = asyncio.create_task(_write(stream, life))
            try:
                self._listener.joined(life, hello)
                while True:
                    for event in events:
                        self._listener.received(life, event)
                    if life.overwhelmed:
                        raise ContractBroken("it does not read its commands")
                    frame = await stream.read()
                    if frame is grpc.aio.EOF:
                        self._refusal_told = ""
                        return True
                    events = validation.events(frame, self.role)
            finally:
                writer.cancel()
                self.life = None
                log.info("%s left", life)
                self._listener.left(life)
        finally:
            stream.cancel()

    def _mismatch(self, hello: pb.Hello) -> str:
        if hello.role != self.role:
            return f"expected a role of kind {self.role!r}, found {hello.role!r}"
        return ""

    def _refuse(self, reason: str) -> None:
        if reason != self._refusal_told:
            log.error("%s at %s is refused: %s", self.role, self.url, reason)
        self.refusal = self._refusal_told = reason


class Peers(PeerTable[Peer]):
    """All configured peers, in the order of their URLs."""

    def lives(self) -> list[Life]:
        return [peer.life for peer in self.values() if peer.life is not None]

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self.values()))


async def _write(stream: grpc.aio.StreamStreamCall[pb.Commands, pb.Events | None], life: Life) -> None:
    # A failed write means the stream has ended, which the reading side sees too.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async for frame in life.frames():
            await stream.write(frame)
