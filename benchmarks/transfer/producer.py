"""The process whose tensors are measured on their way: obeys lines of JSON, ends when there are no more."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.transfer import buffers, plain
from benchmarks.transfer.buffers import Rotation
from transfer.endpoint import Held, TransferEndpoint
from transfer.engines.base import EngineAddress
from transfer.engines.mooncake import MooncakeOptions
from transfer.pool import SlotLocation, arena_bytes
from transfer.urls import EndpointURL

URL = EndpointURL.parse("grpc://127.0.0.1:30101")
TIMEOUT = 30.0  # seconds for any one transfer
MOONCAKE = MooncakeOptions(trusted_network=True)  # the peer is this very host
START_TIMEOUT = 120.0  # to load libraries and to page memory in
_ROOT = Path(__file__).parents[2]


class Producer:
    """The handle of the measuring process: a context manager that leaves no process behind."""

    def __init__(self, incarnation: str, engines: Sequence[str], rotations: Sequence[Rotation]) -> None:
        sizes = [dataclasses.astuple(rotation) for rotation in rotations]
        self._setup = ("start", incarnation, list(engines), sizes)
        self.addresses: tuple[EngineAddress, ...] = ()

    async def __aenter__(self) -> "Producer":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            start_new_session=True,  # Ctrl-C reaches the measuring process alone, which then ends this one
        )
        try:
            addresses = await self._do(*self._setup, timeout=START_TIMEOUT)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self.addresses = tuple(EngineAddress(**address) for address in addresses)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), TIMEOUT if error is None else 1.0)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def turn_to(self, rotation: Rotation) -> None:
        """Gives all slots back; from here on tensors of this size are sent."""
        await self._do("turn to", *dataclasses.astuple(rotation))

    async def put(self, turn: int) -> tuple[float, SlotLocation]:
        """The seconds that it took, and where the tensor lies until its turn comes again."""
        seconds, fields = await self._do("put", turn)
        return seconds, SlotLocation(**{**fields, "manifest": base64.b64decode(fields["manifest"])})

    async def send_by_zmq(self, turn: int, address: str) -> float:
        """When sending began, on the clock of `time.monotonic`."""
        return float(await self._do("plain-zmq", turn, address))

    async def write_by_mooncake(self, turn: int, session: str, target: int) -> float:
        """The seconds that it took."""
        return float(await self._do("plain-mooncake", turn, session, target))

    async def _do(self, *command: Any, timeout: float = 2 * TIMEOUT) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout)
        except asyncio.TimeoutError:
            raise RuntimeError(f"the producer did not answer {command[0]!r} within {timeout:g} s") from None
        if not line:
            raise RuntimeError(f"the producer ended before it answered {command[0]!r}")
        return json.loads(line)


async def serve() -> None:
    """What the process does: sets up as its first line says, then answers each line with one."""
    _, incarnation, engines, sizes = json.loads(await _next_line())
    rotations = [Rotation(*size) for size in sizes]
    region = buffers.region(rotations)
    room = max(arena_bytes(rotation.count, rotation.nbytes) for rotation in rotations)
    endpoint = await TransferEndpoint.start(URL, incarnation, room, 1, engines, mooncake=MOONCAKE)
    rotation = rotations[0]
    held: deque[Held] = deque()
    with contextlib.ExitStack() as plain_ones:
        sender: plain.ZmqSender | None = None
        mooncake: plain.Mooncake | None = None
        _say([dataclasses.asdict(address) for address in endpoint.addresses])
        while line := await _next_line():
            match json.loads(line):
                case ["turn to", int(nbytes), int(count)]:
                    rotation = Rotation(nbytes, count)
                    while held:
                        held.popleft().release()
                    _say(None)
                case ["put", int(turn)]:
                    if len(held) == rotation.count:
                        held.popleft().release()
                    _say(await _put(endpoint, rotation.pick(region, turn), held))
                case ["plain-zmq", int(turn), str(address)]:
                    if sender is None:
                        sender = plain.ZmqSender(address, TIMEOUT)
                        plain_ones.callback(sender.close)
                    _say(sender.send(rotation.pick(region, turn)))
                case ["plain-mooncake", int(turn), str(session), int(target)]:
                    if mooncake is None:
                        mooncake = plain.Mooncake(region)
                        plain_ones.callback(mooncake.close)
                    _say(mooncake.write(session, rotation.pick(region, turn), target))
                case command:
                    raise ValueError(f"unknown command {command}")
    await endpoint.close()


async def _put(endpoint: TransferEndpoint, tensor: torch.Tensor, held: deque[Held]) -> list[Any]:
    started = time.monotonic()
    held.append(await endpoint.put({"tensor": tensor}, TIMEOUT))
    seconds = time.monotonic() - started
    fields = dataclasses.asdict(held[-1].location)
    return [seconds, {**fields, "manifest": base64.b64encode(fields["manifest"]).decode()}]


async def _next_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
