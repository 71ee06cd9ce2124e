"""Many role instances in one process, each a real gRPC server that answers its tasks at once.

They move no tensors: measured is the orchestrator's side. 192 processes with torch would not fit on a small
machine.

Reads numbers, one a line: how many more tasks encoders may answer. Writes a byte for each video.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import grpc

from benchmarks.machine import ROOT
from deploy.onebox import die_with_parent
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

CAPACITY = 2
# As roles: orchestrators ping often, and by default a server hangs up on those that do and send no data.
SERVER_OPTIONS = (("grpc.http2.max_ping_strikes", 0),)


class Instance:
    """One role at one URL; serves one stream at a time."""

    def __init__(self, role: str, port: int, permits: asyncio.Semaphore) -> None:
        self._role = role
        self._url = EndpointURL("127.0.0.1", port)
        self._permits = permits
        self._events: asyncio.Queue[pb.Event] = asyncio.Queue()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._attach,
            request_deserializer=pb.Commands.FromString,
            response_serializer=pb.Events.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("triptych.v1.Role", {"Attach": handler})
        self._server.add_generic_rpc_handlers((service,))

    async def start(self) -> None:
        self._server.add_insecure_port(self._url.target)
        await self._server.start()

    async def _attach(self, frames: AsyncIterator[pb.Commands], context: Any) -> AsyncIterator[pb.Events]:
        yield pb.Events(events=[pb.Event(hello=self._hello())])
        reading = asyncio.create_task(self._read(frames))
        try:
            while True:
                events = [await self._events.get()]
                while not self._events.empty():
                    events.append(self._events.get_nowait())
                yield pb.Events(events=events)
        finally:
            reading.cancel()

    async def _read(self, frames: AsyncIterator[pb.Commands]) -> None:
        async for frame in frames:
            for command in frame.commands:
                if command.HasField("run"):
                    await self._answer(command.run)

    async def _answer(self, run: pb.Run) -> None:
        if self._role == "encoder":
            await self._permits.acquire()
        if run.inputs:
            self._events.put_nowait(pb.Event(input_ready=pb.InputReady(task_id=run.task_id)))
        done = pb.Done(task_id=run.task_id, timing=pb.Timing(compute=0.001, batch=1))
        if self._role == "decoder":
            facts = run.generation
            done.file.CopyFrom(
                pb.MediaFile(
                    name=f"{run.job_id}.mp4", bytes=1, content_type="video/mp4", width=facts.width,
                    height=facts.height, num_frames=facts.num_frames, fps=facts.fps,
                )
            )  # fmt: skip
            os.write(1, b".")
        else:
            done.slot.CopyFrom(pb.Slot(arena="outbox", length=1000, generation=1))
        self._events.put_nowait(pb.Event(done=done))

    def _hello(self) -> pb.Hello:
        defaults = pb.Generation(
            width=64, height=64, num_frames=5, fps=8, num_inference_steps=4, guidance_scale=1.0
        )
        return pb.Hello(
            role=self._role,
            incarnation=secrets.token_hex(8),
            model=pb.Model(
                name="swarm", family="emulated", fingerprint="swarm", spatial_multiple=2,
                temporal_multiple=4, max_pixels=1 << 20, max_frames=81, max_steps=50, defaults=defaults,
                negative_prompt=True, output="video", formats=["mp4"],
            ),
            capacity=CAPACITY,
            pools=[pb.Pool(name="outbox", bytes=1 << 30, free_bytes=1 << 30)],
            largest_output_bytes=1000,
        )  # fmt: skip


class Swarm:
    """The process, from the outside. RuntimeError when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def permit(self, count: int) -> None:
        """So many videos more may be made."""
        assert self._process.stdin
        self._process.stdin.write(b"%d\n" % count)
        self._process.stdin.flush()

    def wait(self) -> int:
        """Until there is a further video; the number of those that there are now."""
        assert self._process.stdout
        dots = os.read(self._process.stdout.fileno(), 1 << 16)
        if not dots:
            raise RuntimeError("the process with the emulated instances has ended")
        return dots.count(b".")


@contextlib.contextmanager
def running(ports: Mapping[str, Sequence[int]]) -> Iterator[Swarm]:
    """Without a permit at first."""
    words = [f"{role}:{port}" for role, given in ports.items() for port in given]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scheduler.swarm", *words],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        preexec_fn=die_with_parent,
    ) as process:  # fmt: skip
        try:
            swarm = Swarm(process)
            swarm.wait()
            yield swarm
        finally:
            process.kill()


async def _serve(words: Sequence[str]) -> None:
    permits = asyncio.Semaphore(0)
    instances = []
    for word in words:
        role, _, port = word.partition(":")
        instances.append(Instance(role, int(port), permits))
    for instance in instances:
        await instance.start()
    os.write(1, b"\n")  # ready
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        for _ in range(int(line)):
            permits.release()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
