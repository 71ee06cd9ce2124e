"""A process with a whole transfer endpoint, maybe on a host of its own; and the handle that drives it."""

import asyncio
import dataclasses
import hashlib
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.transfer.driven import Driven, say
from tests.transfer.producer import content, decoded, encoded
from transfer.endpoint import Held, TransferEndpoint
from transfer.engines.base import EngineAddress
from transfer.engines.mooncake_setup import MooncakeOptions
from transfer.errors import TransferError
from transfer.keys import TransferKeys
from transfer.urls import EndpointURL

PORT = 30101


@dataclasses.dataclass(frozen=True)
class Output:
    """What a consumer is told of a producer's output."""

    url: str
    incarnation: str
    addresses: list[list[str]]
    location: dict[str, Any]
    digest: str  # SHA-256 of the bytes, by which tests know them


class Node(Driven):
    """One life of a process at `address`, started by the words of `on` (such as ip netns exec NAME)."""

    def __init__(
        self,
        address: str,
        engines: Sequence[str],
        pool_bytes: int,
        keys: Path | None = None,
        on: Sequence[str] = (),
    ) -> None:
        self.url, self._incarnation = f"grpc://{address}:{PORT}", secrets.token_hex(8)
        words = [self.url, self._incarnation, ",".join(engines), str(pool_bytes), str(keys or "")]
        super().__init__(__name__, words, on)
        self.addresses: list[list[str]] = self.read()

    def put(self, nbytes: int, seed: int) -> Output:
        digest = hashlib.sha256(content(nbytes, seed)).hexdigest()
        return Output(self.url, self._incarnation, self.addresses, self.do("put", nbytes, seed), digest)

    def start_fetch(self, output: Output, seconds: float) -> None:
        self.ask("fetch", dataclasses.asdict(output), seconds)

    def end_fetch(self) -> list[str]:
        """The engine and the digest of what was read, or the name of an error and its message."""
        outcome: list[str] = self.read()
        return outcome

    def fetch(self, output: Output, seconds: float = 30) -> list[str]:
        self.start_fetch(output, seconds)
        return self.end_fetch()

    def slots_in_use(self) -> list[int]:
        """Of outbox and inbox."""
        slots: list[int] = self.do("slots")
        return slots


async def serve(endpoint: TransferEndpoint) -> None:
    say([dataclasses.astuple(address) for address in endpoint.addresses])
    held: list[Held] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        match json.loads(line):
            case ["put", nbytes, seed]:
                tensor = torch.frombuffer(bytearray(content(nbytes, seed)), dtype=torch.uint8)
                held.append(await endpoint.put({"x": tensor}, 1))
                say(encoded(held[-1].location))
            case ["fetch", fields, seconds]:
                say(await fetch(endpoint, Output(**fields), seconds))
            case ["slots"]:
                say([pool.stats().slots_in_use for pool in endpoint.pools])


async def fetch(endpoint: TransferEndpoint, output: Output, seconds: float) -> list[str]:
    addresses = [EngineAddress(*fields) for fields in output.addresses]
    url = EndpointURL.parse(output.url)
    try:
        received = await endpoint.fetch(url, output.incarnation, addresses, decoded(output.location), seconds)
    except TransferError as error:
        return [type(error).__name__, str(error)]
    tensor = received.values["x"]
    assert isinstance(tensor, torch.Tensor)
    digest = hashlib.sha256(tensor.numpy()).hexdigest()
    received.release()
    return [received.engine, digest]


async def run(url: str, incarnation: str, engines: str, pool_bytes: str, keys: str) -> None:
    endpoint = await TransferEndpoint.start(
        EndpointURL.parse(url),
        incarnation,
        int(pool_bytes),
        int(pool_bytes),
        engines.split(","),
        EndpointURL.parse(url).host,
        mooncake=MooncakeOptions(trusted_network=True),
        keys=TransferKeys.load(Path(keys)) if keys else None,
    )
    await serve(endpoint)


def main(*words: str) -> None:
    asyncio.run(run(*words))


if __name__ == "__main__":
    main(*sys.argv[1:])
