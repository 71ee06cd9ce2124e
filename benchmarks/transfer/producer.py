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
        """The roles of one host have shm alone, and then take no checksums; others have network engines."""
        sizes = [dataclasses.astuple(rotation) for rotation in rotations]
        groups = [[name for name in engines if (name == "shm") == alone] for alone in (True, False)]
        self._setup = ("start", incarnation, [group for group in groups if group], sizes)
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

    async def put(self, engine: str, turn: int) -> tuple[float, SlotLocation]:
        """The seconds that it took, and where the tensor lies, for readers by `engine`, until its turn
        comes again."""
        seconds, fields = await self._do("put", engine, turn)
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


class Outputs:
    """An endpoint and what it holds for readers, the oldest first."""

    def __init__(self, endpoint: TransferEndpoint) -> None:
        self.endpoint = endpoint
        self._held: deque[Held] = deque()

    def release_until(self, count: int) -> None:
        while len(self._held) > count:
            self._held.popleft().release()

    async def put(self, tensor: torch.Tensor) -> list[Any]:
        started = time.monotonic()
        self._held.append(await self.endpoint.put({"tensor": tensor}, TIMEOUT))
        seconds = time.monotonic() - started
        fields = dataclasses.asdict(self._held[-1].location)
        return [seconds, {**fields, "manifest": base64.b64encode(fields["manifest"]).decode()}]


async def serve() -> None:
    """What the process does: sets up as its first line says, then answers each line with one."""
    _, incarnation, groups, sizes = json.loads(await _next_line())
    rotations = [Rotation(*size) for size in sizes]
    region = buffers.region(rotations)
    room = max(arena_bytes(rotation.count, rotation.nbytes) for rotation in rotations)
    outputs: dict[str, Outputs] = {}  # by engine
    for engines in groups:
        endpoint = await TransferEndpoint.start(URL, incarnation, room, 1, engines, mooncake=MOONCAKE)
        outputs.update(dict.fromkeys(engines, Outputs(endpoint)))
    rotation = rotations[0]
    with contextlib.ExitStack() as plain_ones:
        sender: plain.ZmqSender | None = None
        mooncake: plain.Mooncake | None = None
        endpoints = {id(one): one.endpoint for one in outputs.values()}.values()
        _say([dataclasses.asdict(address) for endpoint in endpoints for address in endpoint.addresses])
        while line := await _next_line():
            match json.loads(line):
                case ["turn to", int(nbytes), int(count)]:
                    rotation = Rotation(nbytes, count)
                    for one in outputs.values():
                        one.release_until(0)
                    _say(None)
                case ["put", str(engine), int(turn)]:
                    outputs[engine].release_until(rotation.count - 1)
                    _say(await outputs[engine].put(rotation.pick(region, turn)))
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
    for endpoint in endpoints:
        await endpoint.close()


async def _next_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
