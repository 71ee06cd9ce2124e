"""`python -m benchmarks.floor.stage`: the process of a stage; with a folder it is the decoder's.

It hashes the tensor that it is given and makes one of the digest. Tensors travel in messages, but for those
that its command line says are large: of them only the place does.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks.floor.clip import TINY_CLIP, Clip
from benchmarks.floor.message import METHOD, SERVICE, digest, job_of, message, noise, payload_of, split
from benchmarks.floor.tensors import Made, Read

if TYPE_CHECKING:  # the other stages need no libav
    from benchmarks.floor.video import Videos


class Stage:
    """Answers each message with one.

    Without ``threads`` everything runs on the event loop. That is the least for one client; of eight, the
    videos of some can be encoded while those of others are on their way to the disk.
    """

    def __init__(
        self,
        take: Callable[[bytes], bytes],
        make: Callable[[bytes], bytes],
        videos: Videos | None = None,
        threads: int = 0,
    ) -> None:
        """``take`` a tensor's digest, ``make`` one of a digest: each is what a message carries of it."""
        self._take, self._make = take, make
        self._videos = videos
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
        job, key = job_of(one), self._take(payload_of(one))
        if self._videos is not None:
            self._videos.write(job, key)
        return message(job, self._make(key))


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
    parser.add_argument(
        "--clip", type=int, nargs=3, default=astuple(TINY_CLIP), metavar=("WIDTH", "HEIGHT", "FRAMES"),
        help="what each video is like",
    )  # fmt: skip
    parser.add_argument("--reads", action="store_true", help="the tensor that it is given where it lies")
    parser.add_argument("--makes", type=int, default=0, metavar="BYTES", help="in memory that others read")
    args = parser.parse_args()
    take = Read().digest if args.reads else digest
    make = Made(args.makes).make if args.makes else noise
    videos = None if args.videos is None else _videos(args.videos, Clip(*args.clip))
    asyncio.run(run(Stage(take, make, videos, args.threads)))


def _videos(directory: Path, clip: Clip) -> Videos:
    from benchmarks.floor.video import Videos

    return Videos(directory, clip)


if __name__ == "__main__":
    main()
