"""The server's side of a stage: one long-lived gRPC stream of plain bytes."""

from __future__ import annotations

import asyncio

import grpc

from benchmarks.floor.message import METHOD, SERVICE, job_of, message, payload_of, split


class Stream:
    """Brings payloads to a stage and back, many at once. A frame carries all that is waiting to be sent."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel.stream_stream(
            f"/{SERVICE}/{METHOD}"
        )()
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._unsent: list[bytes] = []
        self._sending = False
        self._reader = asyncio.create_task(self._read())

    async def work(self, job: str, payload: bytes) -> bytes:
        """What the stage makes of it; ConnectionError when the stream ends first."""
        if self._reader.done():
            raise ConnectionError("the stage is gone")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[job] = answer
        self._unsent.append(message(job, payload))
        if not self._sending:
            await self._send()
        return await answer

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait([self._reader])
        await self._channel.close()

    async def _send(self) -> None:
        self._sending = True
        try:
            while self._unsent:
                frame = b"".join(self._unsent)
                self._unsent.clear()
                await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream has ended, which the reader sees too
        finally:
            self._sending = False

    async def _read(self) -> None:
        """To the end of the stream; the server has nothing to do then but to say so."""
        try:
            while isinstance(frame := await self._call.read(), bytes):  # not EOF
                for one in split(frame):
                    self._answers.pop(job_of(one)).set_result(payload_of(one))
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            for answer in self._answers.values():
                answer.set_exception(ConnectionError("the stage is gone"))
