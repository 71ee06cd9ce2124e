"""A process that publishes slots, driven by lines of JSON; and the handle by which tests drive it."""

import asyncio
import base64
import dataclasses
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from transfer import memory
from transfer.arena import Arena
from transfer.engines.base import Engine, Source
from transfer.engines.mooncake import MooncakeEngine, MooncakeOptions
from transfer.engines.shm import ShmEngine
from transfer.engines.zmq import ZmqEngine
from transfer.pool import Lease, Pool, SlotLocation
from transfer.urls import EndpointURL

ARENA_BYTES = 64 << 20


def content(nbytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def make_engine(name: str, incarnation: str, port: int = 0) -> Engine:
    if name == "shm":
        return ShmEngine(incarnation)
    if name == "zmq":
        return ZmqEngine(incarnation, "127.0.0.1", port)
    return MooncakeEngine(incarnation, "127.0.0.1", MooncakeOptions(trusted_network=True))


class Producer:
    """One life of a producer, as its consumers' side sees it."""

    def __init__(self, engine: str, port: int = 0) -> None:
        self.url = EndpointURL.parse("grpc://127.0.0.1:30101")
        self.engine, self.incarnation = engine, secrets.token_hex(8)
        command = [sys.executable, "-m", "tests.transfer.producer", engine, self.incarnation, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address, self.scope = self._read()
        self.pid = self._process.pid

    def publish(self, nbytes: int, seed: int = 0) -> Source:
        fields = self._do("publish", nbytes, seed)
        location = SlotLocation(**{**fields, "manifest": base64.b64decode(fields["manifest"])})
        return Source(self.url, self.incarnation, self.address, location)

    def release(self, source: Source) -> None:
        self._do("release", source.location.generation)

    def recycle(self, source: Source) -> None:
        """Puts the complement of the bytes into the same slot, under the next generation."""
        self._do("recycle", source.location.generation)

    def corrupt(self, source: Source, byte: int) -> None:
        """Flips bits of one byte, counted from the start of the slot's header."""
        self._do("corrupt", source.location.offset + byte)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # returns when it has stopped

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _do(self, *command: Any) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the producer has died"
        return json.loads(line)


def serve(commands: Iterable[str], engine: Engine) -> None:
    arena = Arena("outbox", ARENA_BYTES)
    pool = Pool("outbox", arena)
    engine.start({"outbox": pool})
    say([engine.address, engine.scope])
    leases: dict[int, Lease] = {}
    for line in commands:
        match json.loads(line):
            case ["publish", nbytes, seed]:
                lease = asyncio.run(pool.acquire(nbytes, 0))
                leases[lease.generation] = lease
                lease.payload[:] = content(nbytes, seed)
                fields = dataclasses.asdict(lease.publish(b"{}", memory.checksum(lease.payload)))
                say({**fields, "manifest": base64.b64encode(fields["manifest"]).decode()})
            case ["release", generation]:
                leases.pop(generation).release()
                say(None)
            case ["recycle", generation]:
                lease = leases.pop(generation)
                complement = ~np.frombuffer(lease.payload, np.uint8)
                lease.release()
                again = asyncio.run(pool.acquire(complement.nbytes, 0))
                leases[again.generation] = again
                again.payload[:] = complement.data
                again.publish(b"{}", memory.checksum(again.payload))
                say(again.offset)
            case ["corrupt", byte]:
                arena.memory[byte] ^= 0xFF
                say(None)


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    name, incarnation, port = sys.argv[1:]
    serve(sys.stdin, make_engine(name, incarnation, int(port)))
