"""A fake role: a real gRPC server whose stream says what a test gives it, be it a message or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from deploy.ports import free_port
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

Script = Callable[["FakeRole"], AsyncIterator[bytes]]


class FakeRole:
    """Each stream that is opened to it sends what ``script`` yields, then stays open if ``stays``."""

    def __init__(self, script: Script, *, stays: bool = False, reads: bool = True) -> None:
        self.url = EndpointURL("127.0.0.1", free_port())
        self.streams = 0  # opened so far
        self.given: list[str] = []  # ids of the tasks it was told to run
        self.has_work = asyncio.Event()
        self.metadata: dict[str, Any] = {}  # of the latest call
        self._script, self._stays, self._reads = script, stays, reads
        self._server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._attach)  # bytes in, bytes out
        service = grpc.method_handlers_generic_handler("triptych.v1.Role", {"Attach": handler})
        self._server.add_generic_rpc_handlers((service,))

    async def __aenter__(self) -> FakeRole:
        self._server.add_insecure_port(self.url.target)
        await self._server.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._server.stop(0)

    async def _attach(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.streams += 1
        self.metadata = dict(context.invocation_metadata())
        reading = asyncio.create_task(self._read(requests)) if self._reads else None
        try:
            async for data in self._script(self):
                yield data
            if self._stays:
                await asyncio.Event().wait()
        finally:
            if reading is not None:
                reading.cancel()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            frame = pb.Commands.FromString(data)
            self.given += [command.run.task_id for command in frame.commands if command.HasField("run")]
            if self.given:
                self.has_work.set()


def hello(role: str = "denoiser", **fields: Any) -> pb.Hello:
    """What an honest role could say; ``fields`` replace its own."""
    message = pb.Hello(
        role=role,
        incarnation="0123456789abcdef",
        model=pb.Model(
            name="fake",
            defaults=pb.Generation(width=64, height=64, num_frames=5, fps=8, num_inference_steps=4),
            max_pixels=1 << 20,
            max_frames=100,
            max_steps=100,
        ),
        capacity=2,
        pools=[pb.Pool(name="outbox", bytes=1 << 20, free_bytes=1 << 20)],
    )
    for name, value in fields.items():
        message.ClearField(name)  # type: ignore[arg-type]
        message.MergeFrom(pb.Hello(**{name: value}))
    return message


def frame(*events: pb.Event) -> bytes:
    return pb.Events(events=events).SerializeToString()
