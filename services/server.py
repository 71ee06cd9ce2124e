"""The gRPC server of a role: control streams, media files, health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.credentials import Credentials
from services.media.store import media_path
from services.model.base import RoleModel
from services.role import Role
from services.session import Session
from services.wire import (
    cache_message,
    choice_messages,
    endpoint_messages,
    pool_messages,
    traffic_messages,
)
from services.worker import Worker, peak_memory_bytes
from transfer.endpoint import TransferEndpoint
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2_grpc import RoleServicer, add_RoleServicer_to_server

log = logging.getLogger(__name__)

STATS_SECONDS = 5.0
FILE_CHUNK_BYTES = 256 * 1024
MAX_COMMANDS = 4096  # in one frame; orchestrators send 256 at most
MAX_FRAME_BYTES = 64 << 20  # of commands: a Run brings its reference images along
MAX_CALLS = 1024  # at once; further ones are refused
SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # an orchestrator whose host vanished must not hold outputs for ever
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),  # orchestrators ping often: that is how they notice a silent host
    ("grpc.so_reuseport", 0),  # a second process on the same port is a mistake, not a replica
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
)


class RoleServer(RoleServicer):
    """Serves from the start; a stream gets its ``Hello`` once ``open_for_work`` was called."""

    def __init__(self, role: Role, incarnation: str, credentials: Credentials | None = None) -> None:
        self._role = role
        self._incarnation = incarnation
        self._credentials = credentials or Credentials()
        self._server = grpc.aio.server(
            interceptors=self._credentials.interceptors(),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._health = health.aio.HealthServicer()
        self._sessions: set[Session] = set()
        self._ready = asyncio.Event()  # open for work, or never going to be
        self._stopping = False
        self._stats: asyncio.Task[None] | None = None
        add_RoleServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def listen(self, address: str) -> int:
        """Binds to ``HOST:PORT`` and serves; returns the port. OSError names the address if it is taken."""
        try:
            port = self._credentials.bind(self._server, address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._health.set("ready", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return port

    async def open_for_work(
        self, model: RoleModel, worker: Worker, endpoint: TransferEndpoint, directory: Path | None
    ) -> None:
        """The model is loaded: introduces this role to whoever is attached or will be."""
        self._model, self._worker, self._endpoint, self._directory = model, worker, endpoint, directory
        self._ready.set()
        self._stats = asyncio.create_task(self._report_stats())
        await self._health.set("ready", health_pb2.HealthCheckResponse.SERVING)

    @property
    def attached(self) -> bool:
        """An orchestrator has a stream to this role."""
        return bool(self._sessions)

    async def drain(self) -> None:
        """Takes no new task and says so."""
        self._worker.drain()
        self._send_stats()
        await self._health.set("ready", health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self) -> None:
        self._stopping = True
        self._ready.set()
        if self._stats is not None:
            self._stats.cancel()
        for session in self._sessions:
            session.close()
        await self._server.stop(grace=1.0)

    # ---- the contract

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.Commands],
        context: grpc.aio.ServicerContext[pb.Commands, pb.Events],
    ) -> AsyncIterator[pb.Events]:
        await self._ready.wait()
        if self._stopping:
            return
        session = Session()
        caller = context.peer()  # now: when the stream has ended, asking the context crashes the process
        log.info("an orchestrator attached from %s", caller)
        self._sessions.add(session)
        orphans = self._worker.attach(session)
        reader = asyncio.create_task(self._read_commands(session, request_iterator))

        def end() -> None:
            reader.cancel()
            self._sessions.discard(session)
            self._worker.detach(session)
            log.info("the orchestrator at %s is gone", caller)

        # Not in the finally below: it is not reached while the other side takes nothing of what is sent.
        session.on_close = end
        try:
            yield pb.Events(events=[pb.Event(hello=self._hello(orphans))])
            async for frame in session.frames():
                yield frame
        finally:
            session.close()

    async def ReadFile(  # type: ignore[override]  # it writes by itself, and can see why that fails
        self,
        request: pb.ReadFileRequest,
        context: grpc.aio.ServicerContext[pb.ReadFileRequest, pb.FileChunk],
    ) -> None:
        path = await self._file(request.name, context)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no file {request.name!r}")
        except OSError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{request.name}: {error.strerror}")
        with file:
            size = path.stat().st_size
            offset = min(request.offset, size)
            remaining = min(request.length or size, size - offset)
            file.seek(offset)
            first = True
            while remaining > 0 or first:
                data = await asyncio.to_thread(file.read, min(remaining, FILE_CHUNK_BYTES))
                try:
                    await context.write(pb.FileChunk(data=data, file_bytes=size if first else 0))
                except Exception as error:  # gRPC has no public name for it
                    log.debug("%s: its reader has left: %r", request.name, error)
                    return
                first = False
                if not data:
                    return
                remaining -= len(data)

    async def DeleteFile(
        self,
        request: pb.DeleteFileRequest,
        context: grpc.aio.ServicerContext[pb.DeleteFileRequest, pb.DeleteFileReply],
    ) -> pb.DeleteFileReply:
        path = await self._file(request.name, context)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return pb.DeleteFileReply()

    # ---- helpers

    def _hello(self, orphans: list[str]) -> pb.Hello:
        return pb.Hello(
            role=self._role.value,
            incarnation=self._incarnation,
            model=self._model.facts,
            capacity=self._worker.limits.capacity,
            endpoints=endpoint_messages(self._endpoint),
            orphans=pb.Orphans(task_ids=orphans),
            pools=pool_messages(self._endpoint),
            largest_output_bytes=self._model.largest_output_bytes(),
        )

    async def _read_commands(self, session: Session, frames: AsyncIterator[pb.Commands]) -> None:
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for frame in frames:
                    if len(frame.commands) > MAX_COMMANDS:
                        log.warning("a stream was closed: %d commands in one frame", len(frame.commands))
                        return
                    for command in frame.commands:
                        await self._obey(command, session)
        finally:
            session.close()

    async def _obey(self, command: pb.Command, session: Session) -> None:
        kind = command.WhichOneof("command")
        if kind == "run":
            self._worker.run(command.run, session)
        elif kind == "cancel":
            self._worker.cancel(command.cancel.task_id)
        elif kind == "release":
            self._worker.release(command.release.task_ids)
        elif kind == "adopt":
            self._worker.adopt(command.adopt.task_ids, session)
        elif kind == "accept":
            self._worker.accept(command.accept.task_ids)
        elif kind == "drain":
            await self.drain()

    async def _file(
        self,
        name: str,
        context: grpc.aio.ServicerContext[pb.ReadFileRequest, pb.FileChunk]
        | grpc.aio.ServicerContext[pb.DeleteFileRequest, pb.DeleteFileReply],
    ) -> Path:
        await self._ready.wait()
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"this {self._role.value} is stopping")
        if self._directory is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this {self._role.value} writes no files")
        try:
            return media_path(self._directory, name)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _report_stats(self) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            self._send_stats()

    def _send_stats(self) -> None:
        stats = pb.Stats(
            pools=pool_messages(self._endpoint),
            resident_bytes=peak_memory_bytes(),
            draining=self._worker.draining,
            traffic=traffic_messages(self._endpoint),
            choices=choice_messages(self._endpoint),
            embedding_cache=cache_message(self._model.cache_stats()),
        )
        for session in self._sessions:
            session.send(pb.Event(stats=stats))
