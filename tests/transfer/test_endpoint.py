"""The endpoint: tensors from one process's memory into another's, and every slot back in its pool."""

import asyncio
import dataclasses
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import torch
import xxhash

from tests.transfer.producer import Producer
from transfer.endpoint import HASH_ASIDE_BYTES, Held, Received, TransferEndpoint
from transfer.engines.base import EngineAddress
from transfer.errors import ManifestError, PeerUnreachable, PoolFull, SlotGone, TooLarge, TransferError
from transfer.manifest import Value
from transfer.urls import EndpointURL

PRODUCER = EndpointURL.parse("grpc://127.0.0.1:30101")
CONSUMER = EndpointURL.parse("grpc://127.0.0.1:30102")
LIFE = secrets.token_hex(8)
POOL_BYTES = 1 << 20


@pytest.fixture
async def producer() -> AsyncIterator[TransferEndpoint]:
    endpoint = await TransferEndpoint.start(PRODUCER, LIFE, POOL_BYTES, 4096)
    yield endpoint
    assert_empty(endpoint)
    await endpoint.close()


@pytest.fixture
async def consumer() -> AsyncIterator[TransferEndpoint]:
    endpoint = await TransferEndpoint.start(CONSUMER, secrets.token_hex(8), 4096, POOL_BYTES)
    yield endpoint
    assert_empty(endpoint)
    await endpoint.close()


@pytest.fixture
def frozen() -> Iterator[tuple[Producer, tuple[EngineAddress, ...]]]:
    peer = Producer("zmq")
    yield peer, (EngineAddress(peer.engine, peer.address, peer.scope),)
    peer.kill()


def assert_empty(endpoint: TransferEndpoint) -> None:
    for pool in endpoint.pools:
        stats = pool.stats()
        assert (stats.free_bytes, stats.slots_in_use, stats.waiting) == (stats.bytes, 0, 0)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def fetch(
    consumer: TransferEndpoint, producer: TransferEndpoint, held: Held, timeout: float = 30
) -> Received:
    return await consumer.fetch(PRODUCER, LIFE, producer.addresses, held.location, timeout)


def only(producer: TransferEndpoint, engine: str) -> tuple[EngineAddress, ...]:
    return tuple(address for address in producer.addresses if address.engine == engine)


@pytest.mark.parametrize("engine", ["shm", "zmq"])
async def test_round_trip(producer: TransferEndpoint, consumer: TransferEndpoint, engine: str) -> None:
    latents = torch.randn(2, 3, 50, dtype=torch.bfloat16)
    values: dict[str, Value] = {
        "latents": latents,
        "mask": latents.transpose(0, 1) > 0,
        "scale": 0.1,
        "shape": (1, [None]),
    }
    held = await producer.put(values, 1)
    received = await consumer.fetch(PRODUCER, LIFE, only(producer, engine), held.location, 30)
    held.release()
    assert (received.engine, received.nbytes) == (engine, held.location.length)
    assert received.seconds > 0
    assert list(received.values) == list(values)
    assert torch.equal(received.values["latents"], latents)  # type: ignore[arg-type]
    assert torch.equal(received.values["mask"], latents.transpose(0, 1) > 0)  # type: ignore[arg-type]
    assert (received.values["scale"], received.values["shape"]) == (0.1, (1, [None]))
    received.release()


@pytest.mark.parametrize(("engines", "hashed"), [(("shm",), False), (("shm", "zmq"), True)])
async def test_nobody_hashes_what_no_reader_checks(engines: tuple[str, ...], hashed: bool) -> None:
    tensor = torch.ones(HASH_ASIDE_BYTES, dtype=torch.uint8)
    producer = await TransferEndpoint.start(PRODUCER, LIFE, 16 << 20, 1, engines)
    consumer = await TransferEndpoint.start(CONSUMER, secrets.token_hex(8), 1, 8 << 20)
    assert {address.engine for address in producer.addresses} == set(engines)  # no way round the checks
    for nbytes in (100, HASH_ASIDE_BYTES):
        held = await producer.put({"x": tensor[:nbytes]}, 1)
        expected = xxhash.xxh3_64_intdigest(tensor[:nbytes].numpy().data)
        assert held.location.checksum == (expected if hashed else 0)
        received = await fetch(consumer, producer, held)
        assert received.engine == "shm"
        assert torch.equal(received.values["x"], tensor[:nbytes])  # type: ignore[arg-type]
        received.release()
        held.release()
    await producer.close()
    await consumer.close()


@pytest.mark.parametrize("shared", ["put", "fetched"])
async def test_each_user_releases(
    producer: TransferEndpoint, consumer: TransferEndpoint, shared: str
) -> None:
    held = await producer.put({"x": torch.ones(100)}, 1)
    received = await fetch(consumer, producer, held)
    one, other = (held, received) if shared == "put" else (received, held)
    pool = producer.pools[0] if shared == "put" else consumer.pools[1]
    one.retain()
    one.release()
    assert pool.stats().slots_in_use == 1
    assert torch.equal(received.values["x"], torch.ones(100))  # type: ignore[arg-type]
    one.release()
    assert pool.stats().slots_in_use == 0
    with pytest.raises(RuntimeError, match="released before"):
        one.retain()
    other.release()


async def test_values_without_tensors(producer: TransferEndpoint, consumer: TransferEndpoint) -> None:
    held = await producer.put({}, 1)
    received = await fetch(consumer, producer, held)
    assert received.values == {}
    received.release()
    held.release()


async def test_the_first_engine_in_scope_is_taken(
    producer: TransferEndpoint, consumer: TransferEndpoint
) -> None:
    held = await producer.put({"x": 1}, 1)
    shm, zmq = producer.addresses
    elsewhere = dataclasses.replace(shm, scope="another host")
    for addresses, engine in (((zmq, shm), "shm"), ((elsewhere, zmq), "zmq")):
        received = await consumer.fetch(PRODUCER, LIFE, addresses, held.location, 30)
        assert received.engine == engine
        received.release()
    for unfit in ([elsewhere], []):
        with pytest.raises(PeerUnreachable, match="no engine"):
            await consumer.fetch(PRODUCER, LIFE, unfit, held.location, 30)
    held.release()


@pytest.mark.parametrize("engine", ["shm", "zmq"])
async def test_failures_name_the_peer_and_hold_nothing(
    producer: TransferEndpoint, consumer: TransferEndpoint, engine: str
) -> None:
    held = await producer.put({"x": torch.ones(1000)}, 1)
    good = held.location
    for incarnation, location, error in (
        ("another life", good, SlotGone),
        (LIFE, dataclasses.replace(good, generation=77), SlotGone),
        (LIFE, dataclasses.replace(good, arena="inbox"), SlotGone),
        (LIFE, dataclasses.replace(good, manifest=b"{}"), ManifestError),
        (LIFE, dataclasses.replace(good, length=1 << 40), TooLarge),
    ):
        with pytest.raises(error, match=str(PRODUCER)):
            await consumer.fetch(PRODUCER, incarnation, only(producer, engine), location, 30)
        assert_empty(consumer)
    held.release()


async def test_put_refuses_before_it_takes_a_slot(producer: TransferEndpoint) -> None:
    with pytest.raises(ManifestError, match=r"x: builtins\.object"):
        await producer.put({"x": object()}, 1)  # type: ignore[dict-item]
    with pytest.raises(TooLarge, match="outbox"):
        await producer.put({"x": torch.empty(POOL_BYTES, dtype=torch.uint8)}, 1)


async def test_room_is_waited_for(producer: TransferEndpoint, consumer: TransferEndpoint) -> None:
    large = {"x": torch.ones(POOL_BYTES * 2 // 3, dtype=torch.uint8)}
    held = await producer.put(large, 1)
    with pytest.raises(PoolFull, match="outbox"):
        await producer.put(large, 0.01)
    received = await fetch(consumer, producer, held)
    with pytest.raises(PoolFull, match=r"grpc://127\.0\.0\.1:30101 outbox\+0: inbox"):
        await fetch(consumer, producer, held, 0.01)
    second = asyncio.create_task(fetch(consumer, producer, held))
    await asyncio.sleep(0)
    assert consumer.pools[1].stats().waiting == 1
    received.release()
    (await second).release()
    held.release()


async def test_a_cancelled_fetch_keeps_its_slot_until_the_read_has_ended(
    consumer: TransferEndpoint, frozen: tuple[Producer, tuple[EngineAddress, ...]]
) -> None:
    peer, addresses = frozen
    location = peer.publish(100_000).location
    peer.freeze()
    task = asyncio.create_task(consumer.fetch(PRODUCER, peer.incarnation, addresses, location, 0.5))
    await until(lambda: consumer.pools[1].stats().slots_in_use == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert consumer.pools[1].stats().slots_in_use == 1
    await until(lambda: consumer.pools[1].stats().slots_in_use == 0)


async def test_close_ends_what_is_under_way(frozen: tuple[Producer, tuple[EngineAddress, ...]]) -> None:
    peer, addresses = frozen
    location = peer.publish(POOL_BYTES // 2).location
    peer.freeze()
    endpoint = await TransferEndpoint.start(CONSUMER, secrets.token_hex(8), 4096, POOL_BYTES)
    tasks = [
        asyncio.create_task(endpoint.fetch(PRODUCER, peer.incarnation, addresses, location, 60))
        for _ in range(3)
    ]
    await until(lambda: endpoint.pools[1].stats().waiting == 2)
    await endpoint.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PeerUnreachable, PoolFull, PoolFull]
    assert_empty(endpoint)
    with pytest.raises(PoolFull, match="closed"):
        await endpoint.put({}, 1)


async def test_every_slot_comes_back(producer: TransferEndpoint, consumer: TransferEndpoint) -> None:
    chance = random.Random(7)

    async def one(number: int) -> str:
        elements = chance.choice([0, 10, 5_000, 100_000])
        tensor = torch.full((elements,), number, dtype=torch.int16)
        held = await producer.put({"x": tensor}, 30)
        fate = chance.choice(["success", "recycled", "life", "cancelled", "late"])
        addresses = only(producer, chance.choice(["shm", "zmq"]))
        incarnation = "another life" if fate == "life" else LIFE
        if fate == "recycled":
            held.release()
        task = asyncio.create_task(
            consumer.fetch(PRODUCER, incarnation, addresses, held.location, 0.001 if fate == "late" else 30)
        )
        if fate == "cancelled":
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if fate != "recycled":
            held.release()
        if isinstance(outcome, Received):
            assert fate not in ("recycled", "life")
            assert torch.equal(outcome.values["x"], tensor)  # type: ignore[arg-type]
            outcome.release()
            return "success"
        assert isinstance(outcome, (TransferError, asyncio.CancelledError))
        assert fate != "success", outcome
        return fate

    outcomes = set(await asyncio.gather(*(one(number) for number in range(120))))
    assert outcomes >= {"success", "recycled", "life", "cancelled"}
    await until(lambda: consumer.pools[1].stats().slots_in_use == 0)


async def test_bad_options_leave_nothing_open() -> None:
    for options in ({"engines": ("shm", "ucx")}, {"host": "0.0.0.0"}):
        with pytest.raises(ValueError, match=r"ucx|advertise"):
            await TransferEndpoint.start(CONSUMER, LIFE, 4096, 4096, **options)
    endpoint = await TransferEndpoint.start(CONSUMER, LIFE, 4096, 4096)
    with pytest.raises(OSError, match="in use"):
        await TransferEndpoint.start(CONSUMER, LIFE, 4096, 4096)
    await endpoint.close()
    await (await TransferEndpoint.start(CONSUMER, LIFE, 4096, 4096)).close()
