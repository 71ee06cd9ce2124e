"""Faults of network and peers in the middle of a read: an error or the right bytes, and no slot lost."""

import asyncio
import contextlib
import dataclasses
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.transfer.node import Node, Output, fetch
from tests.transfer.producer import Producer, content, make_engine
from tests.transfer.relay import Relay
from transfer.endpoint import TransferEndpoint
from transfer.engines.base import Engine, Source
from transfer.engines.zmq import CHUNK_BYTES, WINDOW
from transfer.errors import PeerUnreachable, SlotGone, TransferError
from transfer.header import HEADER_BYTES, MAGIC
from transfer.keys import TransferKeys
from transfer.urls import EndpointURL

NBYTES = 2 * CHUNK_BYTES + 12345
OPEN_BYTES = 65  # ZMTP's greeting and the flags of the first frame, which no key protects
POOL_BYTES = 64 << 20


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "keys"])
def keys(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    if not request.param:
        return None
    file = tmp_path_factory.mktemp("keys") / "transfer.key"
    TransferKeys.generate().save(file)
    return file


@pytest.fixture(scope="module")
def producer(keys: Path | None) -> Iterator[Node]:
    node = Node("127.0.0.1", ["zmq"], POOL_BYTES, keys)
    yield node
    node.kill()


@pytest.fixture(scope="module")
def output(producer: Node) -> Output:
    return producer.put(NBYTES, seed=1)


@pytest.fixture
async def consumer(keys: Path | None) -> AsyncIterator[TransferEndpoint]:
    url = EndpointURL.parse("grpc://127.0.0.1:30102")
    loaded = TransferKeys.load(keys) if keys else None
    endpoint = await TransferEndpoint.start(url, secrets.token_hex(8), 4096, POOL_BYTES, ["zmq"], keys=loaded)
    yield endpoint
    assert endpoint.pools[1].stats().slots_in_use == 0
    await endpoint.close()


def through(relay: Relay, output: Output) -> Output:
    return dataclasses.replace(output, addresses=[["zmq", relay.address, ""]])


async def stream(consumer: TransferEndpoint, output: Output) -> bytes:
    """What a server sends for one read when nothing goes wrong."""
    with Relay(output.addresses[0][1]) as relay:
        assert await fetch(consumer, through(relay, output), 30) == ["zmq", output.digest]
        return bytes(relay.seen)


async def after_harm(
    consumer: TransferEndpoint, output: Output, harm: str, at: int, seconds: float
) -> list[str]:
    """The outcome of a read; the next one, by the same way, must succeed."""
    with Relay(output.addresses[0][1], harm, at) as relay:
        outcome = await fetch(consumer, through(relay, output), seconds)
        assert output.url in outcome[1] or outcome == ["zmq", output.digest], outcome
        relay.go.set()
        assert await fetch(consumer, through(relay, output), 30) == ["zmq", output.digest]
        return outcome


def moments(sent: bytes, count: int) -> list[int]:
    """Bytes of a stream: first and last, in greeting, handshake, header and chunks, and any others."""
    header = max(0, sent.find(MAGIC))  # encrypted, it is nowhere
    fixed = {0, 10, OPEN_BYTES - 2, OPEN_BYTES - 1, OPEN_BYTES, header, header + 8, header + 24}
    fixed |= {header + HEADER_BYTES + 9, len(sent) // 2, len(sent) - CHUNK_BYTES, len(sent) - 1}
    chance = random.Random(len(fixed))
    return sorted(fixed | {chance.randrange(len(sent)) for _ in range(count)})


async def test_connection_cut(consumer: TransferEndpoint, output: Output) -> None:
    for at in moments(await stream(consumer, output), 10):
        kind, message = await after_harm(consumer, output, "cut", at, 30)
        assert (kind, "no connection" in message) == ("PeerUnreachable", True), f"cut at {at}: {message}"


async def test_connection_stalls(consumer: TransferEndpoint, output: Output) -> None:
    ats = moments(await stream(consumer, output), 0)
    outcomes = await asyncio.gather(*(after_harm(consumer, output, "stall", at, 1) for at in ats))
    assert {kind for kind, _ in outcomes} == {"ReadTimeout"}


async def test_flipped_bit(consumer: TransferEndpoint, output: Output, keys: Path | None) -> None:
    sent = await stream(consumer, output)
    protected = OPEN_BYTES if keys else sent.find(MAGIC)
    for at in moments(sent, 20):
        kind, detail = await after_harm(consumer, output, "flip", at, 1)
        assert kind != "zmq" or at < protected, f"flipped at {at}"
        assert kind != "zmq" or detail == output.digest
        if not keys and at >= len(sent) - CHUNK_BYTES // 2:  # surely of the payload
            assert kind == "Corrupt" and "checksum" in detail


async def test_server_frozen_in_the_middle_of_a_read(
    consumer: TransferEndpoint, producer: Node, output: Output
) -> None:
    large = producer.put((WINDOW + 5) * CHUNK_BYTES, seed=2)
    with Relay(large.addresses[0][1], "stall", 2 * CHUNK_BYTES) as relay:
        reading = asyncio.create_task(fetch(consumer, through(relay, large), 2))
        assert await asyncio.to_thread(relay.reached.wait, 30)
        producer.freeze()
        relay.go.set()
        assert (await reading)[0] == "ReadTimeout"
        arena = consumer.pools[1].arena.memory
        arena[:] = b"\xa5" * len(arena)
        producer.resume()
        assert await asyncio.to_thread(relay.drained.wait, 30)
        assert bytes(arena) == b"\xa5" * len(arena)
    assert await fetch(consumer, output, 30) == ["zmq", output.digest]


@pytest.fixture
def raw() -> Iterator[list[Producer]]:
    """Producers to be killed at the end of a test."""
    producers: list[Producer] = []
    yield producers
    for one in producers:
        one.kill()


@pytest.fixture(params=["shm", "zmq"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = make_engine(request.param, secrets.token_hex(8))
    engine.start({})
    yield engine
    engine.close()


def read(engine: Engine, source: Source, seconds: float = 30) -> bytes:
    into = memoryview(bytearray(source.location.length))
    engine.read(source, into, time.monotonic() + seconds)
    return bytes(into)


def test_recycled_at_any_moment_of_a_read(engine: Engine, raw: list[Producer]) -> None:
    raw.append(Producer(engine.name))
    chance = random.Random(3)
    sources = [raw[0].publish(12 * CHUNK_BYTES, seed) for seed in range(4)]
    contents = [content(12 * CHUNK_BYTES, seed) for seed in range(4)]
    outcomes: Counter[bool] = Counter()
    delay = 0.01  # finds by itself the time that a read takes
    with ThreadPoolExecutor(1) as reader:
        for number in range(150):
            turn = number % len(sources)
            reading = reader.submit(read, engine, sources[turn])
            time.sleep(chance.uniform(0, 2 * delay))
            again = raw[0].recycle(sources[turn])
            try:
                assert reading.result() == contents[turn]
                complete = True
            except (
                SlotGone
            ):  # never Corrupt: nobody writes where zmq reads, and shm looks at the header again
                complete = False
            outcomes[complete] += 1
            delay *= 0.8 if complete else 1.25
            sources[turn], contents[turn] = again, complement(contents[turn])
    assert outcomes[True] and outcomes[False]
    assert [read(engine, source) for source in sources] == contents


def complement(text: bytes) -> bytes:
    return text.translate(bytes(range(255, -1, -1)))


@pytest.mark.parametrize("engine", ["zmq"], indirect=True)
def test_restarted_at_the_same_port_while_it_is_read(engine: Engine, raw: list[Producer]) -> None:
    # Below the ephemeral ports: there, a reader that dials a port where nobody listens can meet itself.
    port = free_port(range(20000, 30000))
    nbytes = 2 * CHUNK_BYTES
    newest: list[tuple[Source, bytes]] = []
    stopped = threading.Event()

    def keep_reading() -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while not stopped.is_set():
            source, expected = newest[-1]
            try:
                assert read(engine, source, 5) == expected
                outcomes["read"] += 1
            except TransferError as error:
                outcomes[type(error).__name__] += 1
                stopped.wait(0.01)
        return outcomes

    with ThreadPoolExecutor(3) as readers:
        try:
            for life in range(4):
                raw.append(Producer("zmq", port))
                newest.append((raw[-1].publish(nbytes, seed=life), content(nbytes, seed=life)))
                assert read(engine, newest[-1][0]) == newest[-1][1]
                for old, _ in newest[:-1]:
                    with pytest.raises((SlotGone, PeerUnreachable)):
                        read(engine, old)
                if life == 0:
                    reading = [readers.submit(keep_reading) for _ in range(3)]
                if life < 3:
                    raw[-1].kill()
        finally:
            stopped.set()
        outcomes = sum((each.result() for each in reading), Counter())
    assert outcomes["read"] and outcomes["PeerUnreachable"]
    assert not outcomes["Corrupt"] and not outcomes["ReadTimeout"]


def free_port(ports: range) -> int:
    for port in random.sample(ports, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"no free port in {ports}")
