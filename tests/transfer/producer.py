"""A process that publishes slots, driven by lines of JSON; and the handle by which tests drive it."""

import asyncio
import base64
import dataclasses
import json
import random
import secrets
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from tests.transfer.driven import Driven, say
from transfer import memory
from transfer.arena import Arena
from transfer.engines.base import Engine, Source
from transfer.engines.mooncake import MooncakeEngine
from transfer.engines.mooncake_setup import MooncakeOptions
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


class Producer(Driven):
    """One life of a producer, as its consumers' side sees it."""

    def __init__(self, engine: str, port: int = 0) -> None:
        self.url = EndpointURL.parse("grpc://127.0.0.1:30101")
        self.engine, self.incarnation = engine, secrets.token_hex(8)
        super().__init__(__name__, [engine, self.incarnation, str(port)])
        self.address, self.scope = self.read()

    def publish(self, nbytes: int, seed: int = 0) -> Source:
        return self._source(self.do("publish", nbytes, seed))

    def release(self, source: Source) -> None:
        self.do("release", source.location.generation)

    def recycle(self, source: Source) -> Source:
        """Releases the slot; the complement of its bytes then is in the same, or another if it is read."""
        return self._source(self.do("recycle", source.location.generation))

    def corrupt(self, source: Source, byte: int) -> None:
        """Flips bits of one byte, counted from the start of the slot's header."""
        self.do("corrupt", source.location.offset + byte)

    def _source(self, fields: dict[str, Any]) -> Source:
        return Source(self.url, self.incarnation, self.address, decoded(fields))


def encoded(location: SlotLocation) -> dict[str, Any]:
    """As JSON can carry it."""
    return {**dataclasses.asdict(location), "manifest": base64.b64encode(location.manifest).decode()}


def decoded(fields: dict[str, Any]) -> SlotLocation:
    return SlotLocation(**{**fields, "manifest": base64.b64decode(fields["manifest"])})


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
                say(encoded(lease.publish(b"{}", memory.checksum(lease.payload))))
            case ["release", generation]:
                leases.pop(generation).release()
                say(None)
            case ["recycle", generation]:
                lease = leases.pop(generation)
                lease.release()
                again = asyncio.run(pool.acquire(lease.payload.nbytes, 30))
                leases[again.generation] = again
                # At once, while readers may still be at it.
                np.invert(np.frombuffer(lease.payload, np.uint8), out=np.frombuffer(again.payload, np.uint8))
                say(encoded(again.publish(b"{}", memory.checksum(again.payload))))
            case ["corrupt", byte]:
                arena.memory[byte] ^= 0xFF
                say(None)


def main(name: str, incarnation: str, port: str) -> None:
    serve(sys.stdin, make_engine(name, incarnation, int(port)))
