"""`python -m benchmarks.floor.stage`: the process of a stage; with a folder it is the decoder's."""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from benchmarks.floor.message import METHOD, SERVICE, job_of, message, next_payload, payload_of, split


class Stage:
    """Answers each message with one.

    Without ``threads`` everything runs on the event loop. That is the least for one client; of eight, the
    videos of some can be encoded while those of others are on their way to the disk.
    """

    def __init__(self, directory: Path | None = None, threads: int = 0) -> None:
        self._videos = None
        if directory is not None:
            from benchmarks.floor.video import Videos  # the other stages need no libav

            self._videos = Videos(directory)
        self._pool = ThreadPoolExecutor(threads) if threads else None

    async def serve(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """One stream, to its end; what fails ends it."""
        if self._pool is None:
            while isinstance(frame := await context.read(), bytes):  # not EOF
                await context.write(b"".join(map(self._answer, split(frame))))
            return
        answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(self._pool, context, answers))
        try:
            while (answer := await answers.get()) is not None:
                await context.write(await answer)  # in the order of the messages: nearly that of their ends
        finally:
            reader.cancel()

    async def _read(
        self,
        pool: ThreadPoolExecutor,
        context: grpc.aio.ServicerContext[bytes, bytes],
        answers: asyncio.Queue[asyncio.Future[bytes] | None],
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while isinstance(frame := await context.read(), bytes):  # not EOF
                for one in split(frame):
                    answers.put_nowait(loop.run_in_executor(pool, self._answer, one))
        finally:
            answers.put_nowait(None)

    def _answer(self, one: bytes) -> bytes:
        job, payload = job_of(one), next_payload(payload_of(one))
        if self._videos is not None:
            self._videos.write(job, payload[:3])
        return message(job, payload)


async def run(stage: Stage) -> None:
    """Prints the port, and serves until it is killed."""
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(stage.serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor.stage", description=__doc__)
    parser.add_argument("--videos", type=Path, metavar="DIR", help="where the decoder writes")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="that write (default: the loop)")
    args = parser.parse_args()
    asyncio.run(run(Stage(args.videos, args.threads)))


if __name__ == "__main__":
    main()
