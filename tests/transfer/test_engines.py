"""What every engine must do, between real processes that are killed, frozen, restarted and corrupted."""

import contextlib
import dataclasses
import gc
import os
import random
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.transfer.producer import Producer, content, make_engine
from transfer.engines.base import Engine, Source
from transfer.engines.zmq import CHUNK_BYTES, ZmqEngine
from transfer.errors import Corrupt, PeerUnreachable, ReadTimeout, SlotGone, TransferError
from transfer.header import HEADER_BYTES

Start = Callable[..., Producer]


@pytest.fixture(params=["shm", "zmq", "mooncake"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "mooncake":
        pytest.importorskip("mooncake")
    return str(request.param)


@pytest.fixture
def start(kind: str) -> Iterator[Start]:
    producers: list[Producer] = []

    def start(*arguments: object) -> Producer:
        producers.append(Producer(kind, *arguments))  # type: ignore[arg-type]
        return producers[-1]

    yield start
    for producer in producers:
        producer.kill()


@pytest.fixture
def engine(kind: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    if kind == "mooncake":
        yield request.getfixturevalue("mooncake")
        return
    engine = make_engine(kind, secrets.token_hex(8))
    engine.start({})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def mooncake() -> Iterator[Engine]:
    """One for all tests: it takes a second to close."""
    engine = make_engine("mooncake", secrets.token_hex(8))
    engine.start({})
    yield engine
    engine.close()


def read(engine: Engine, source: Source, seconds: float = 30) -> bytes:
    into = memoryview(bytearray(source.location.length))
    engine.read(source, into, time.monotonic() + seconds)
    return bytes(into)


def altered(source: Source, **changes: Any) -> Source:
    return dataclasses.replace(source, location=dataclasses.replace(source.location, **changes))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SIZES = [0, 1, 4095, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 3]


def test_exact_bytes(engine: Engine, start: Start) -> None:
    producer = start()
    sources = [producer.publish(nbytes, seed=nbytes) for nbytes in SIZES]
    for source, nbytes in zip(sources, SIZES, strict=True):
        assert read(engine, source) == content(nbytes, seed=nbytes)


def test_many_reads_at_once(engine: Engine, start: Start) -> None:
    producer = start()
    sizes = [random.Random(i).choice([0, 100, 4096, 300_000, 2_500_000]) for i in range(64)]
    sources = [producer.publish(nbytes, seed) for seed, nbytes in enumerate(sizes)]
    with ThreadPoolExecutor(16) as readers:
        found = list(readers.map(lambda source: read(engine, source), sources))
    assert found == [content(nbytes, seed) for seed, nbytes in enumerate(sizes)]


def test_failed_reads_leave_the_engine_whole(engine: Engine, start: Start) -> None:
    source = start().publish(100)
    wrong = dataclasses.replace(source, incarnation="another")

    def fail(number: int) -> None:
        with contextlib.suppress(SlotGone, ReadTimeout):
            read(engine, wrong, [0.0001, 0.001, 30][number % 3])
            raise AssertionError("read from another life")

    with ThreadPoolExecutor(16) as readers:
        list(readers.map(fail, range(600)))
    assert read(engine, source) == content(100, 0)


def test_recycled_slot(engine: Engine, start: Start) -> None:
    producer = start()
    old = producer.publish(10_000, seed=1)
    producer.release(old)
    with pytest.raises(SlotGone, match=r"grpc://127\.0\.0\.1:30101 outbox\+0"):
        read(engine, old)
    new = producer.publish(10_000, seed=2)
    assert new.location.offset == old.location.offset
    with pytest.raises(SlotGone):
        read(engine, old)
    assert read(engine, new) == content(10_000, seed=2)


def test_recycled_while_it_is_read(engine: Engine, start: Start) -> None:
    producer = start()
    nbytes = 4 * CHUNK_BYTES
    with ThreadPoolExecutor(1) as reader:
        for seed in range(20):
            source = producer.publish(nbytes, seed)
            reading = reader.submit(read, engine, source)
            producer.recycle(source)
            try:
                assert reading.result() == content(nbytes, seed)
            except (SlotGone, Corrupt):
                pass
            producer.release(altered(source, generation=source.location.generation + 1))


def test_another_life_of_the_peer(engine: Engine, start: Start) -> None:
    source = start().publish(100)
    with pytest.raises(SlotGone, match="incarnation"):
        read(engine, dataclasses.replace(source, incarnation="another"))
    assert read(engine, source) == content(100, 0)
    with pytest.raises(SlotGone, match="incarnation"):
        read(engine, dataclasses.replace(source, incarnation="another"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"generation": 2}, SlotGone),
        ({"checksum": 1}, Corrupt),
        ({"offset": 4096}, SlotGone),
        ({"offset": 1 << 40}, TransferError),
        ({"length": 99}, TransferError),
        ({"length": 101}, TransferError),
    ],
)
def test_not_what_was_announced(
    engine: Engine, start: Start, changes: dict[str, int], error: type[TransferError]
) -> None:
    source = start().publish(100)
    with pytest.raises(error, match=r"grpc://127\.0\.0\.1:30101 outbox"):
        read(engine, altered(source, **changes))
    assert read(engine, source) == content(100, 0)


@pytest.mark.parametrize("byte", [0, 8, 16, 24], ids=["magic", "generation", "length", "checksum"])
def test_corrupted_header(engine: Engine, start: Start, byte: int) -> None:
    producer = start()
    source = producer.publish(100)
    producer.corrupt(source, byte)
    with pytest.raises(SlotGone if byte == 8 else Corrupt):
        read(engine, source)


@pytest.mark.parametrize("kind", ["zmq", "mooncake"], indirect=True)
@pytest.mark.parametrize("byte", [0, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
def test_corrupted_payload(engine: Engine, start: Start, byte: int) -> None:
    producer = start()
    source = producer.publish(2 * CHUNK_BYTES)
    producer.corrupt(source, HEADER_BYTES + byte)
    with pytest.raises(Corrupt, match="checksum"):
        read(engine, source)


def test_killed_before_the_first_read(engine: Engine, start: Start) -> None:
    producer = start()
    source = producer.publish(100)
    producer.kill()
    with pytest.raises(PeerUnreachable, match="30101"):
        read(engine, source)


def test_killed_between_reads(engine: Engine, start: Start) -> None:
    producer = start()
    source = producer.publish(100)
    assert read(engine, source) == content(100, 0)
    producer.kill()

    def unreachable() -> bool:
        try:  # a reader of shared memory may still see the bytes for a moment: the right ones
            assert read(engine, source) == content(100, 0)
        except PeerUnreachable:
            return True
        return False

    eventually(unreachable)


@pytest.mark.parametrize("kind", ["zmq", "mooncake"], indirect=True)
def test_killed_during_a_read(engine: Engine, start: Start) -> None:
    producer = start()
    source = producer.publish(100)
    read(engine, source)
    producer.freeze()
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read, engine, source, 60)
        producer.kill()
        assert "no connection" in str(reading.exception())


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_frozen(engine: Engine, start: Start, kind: str, known: bool) -> None:
    producer = start()
    source = producer.publish(3 * CHUNK_BYTES, seed=3)
    if known:
        assert read(engine, source) == content(3 * CHUNK_BYTES, seed=3)
    producer.freeze()
    into = memoryview(bytearray(source.location.length))
    if known and kind == "shm":
        engine.read(source, into, time.monotonic() + 0.3)  # its memory needs nobody's help
        assert into == content(3 * CHUNK_BYTES, seed=3)
        return
    with pytest.raises(ReadTimeout, match="30101"):
        engine.read(source, into, time.monotonic() + 0.3)
    producer.resume()
    assert read(engine, source) == content(3 * CHUNK_BYTES, seed=3)
    assert into == bytes(source.location.length)  # what was answered late has found nobody


def test_restarted_at_the_same_address(engine: Engine, start: Start, kind: str) -> None:
    first = start()
    old = first.publish(100, seed=1)
    assert read(engine, old) == content(100, seed=1)
    first.kill()
    port = int(first.address.rpartition(":")[2]) if kind == "zmq" else 0
    second = start(port)
    new = second.publish(100, seed=2)
    assert (new.url, new.location.offset) == (old.url, old.location.offset)
    assert read(engine, new) == content(100, seed=2)
    with pytest.raises((SlotGone, PeerUnreachable)):
        read(engine, old)
    assert read(engine, new) == content(100, seed=2)


def test_nothing_is_left_of_a_killed_process(engine: Engine, start: Start, kind: str) -> None:
    def sockets() -> str:
        with open("/proc/net/unix") as file:
            return file.read()

    producer = start()
    read(engine, producer.publish(100))
    assert (producer.incarnation in sockets()) == (kind == "shm")
    files = named_memory(producer.pid)
    producer.kill()
    assert producer.incarnation not in sockets()
    assert not files & set(os.listdir("/dev/shm"))


def named_memory(pid: int) -> set[str]:
    """Names in the system's shared memory that the process maps or holds open."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = [line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line]
    paths += [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {Path(path).name for path in paths if path.startswith("/dev/shm/")}


@pytest.mark.parametrize("kind", ["shm"], indirect=True)
def test_memory_of_a_killed_peer_is_let_go(engine: Engine, start: Start) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return file.read().count("triptych-outbox")

    gc.collect()  # arenas of other tests
    before = mapped()
    producer = start()
    read(engine, producer.publish(100))
    assert mapped() == before + 1
    producer.kill()
    eventually(lambda: mapped() == before)


@pytest.mark.parametrize("kind", ["zmq"], indirect=True)
def test_malformed_requests_disturb_nobody(engine: Engine, start: Start) -> None:
    producer = start()
    source = producer.publish(100)
    with zmq.Context() as context, context.socket(zmq.DEALER) as prober:
        prober.linger = 0
        prober.connect(source.address)
        me = source.incarnation.encode()
        for request in ([b""], [b"x"] * 9, [me, b"outbox", b"short"]):
            prober.send_multipart(request)
        slot = (source.location.offset, source.location.generation)
        for numbers in ((64, *slot[1:], 0, 1), (*slot[:1], 2, 0, 1), (*slot, 100, 1), (*slot, 0, 1 << 40)):
            prober.send_multipart([me, b"outbox", struct.pack("<4Q", *numbers)])
            assert prober.recv_multipart()[0] == b"gone"
        for frames in ([b"another life", b"outbox"], [me, b"inbox"]):
            prober.send_multipart([*frames, struct.pack("<4Q", *slot, 0, 1)])
            assert prober.recv_multipart()[0] == b"gone"
    assert read(engine, source) == content(100, 0)


@pytest.mark.parametrize("kind", ["zmq"], indirect=True)
def test_what_is_no_peer_of_ours(engine: Engine, start: Start) -> None:
    source = start().publish(100)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as stranger:
        stranger.linger = 0
        port = stranger.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            for frames in ([b"data"], [b"data", bytes(64)], [b"data", bytes(64), b"short", b""]):
                identity = stranger.recv_multipart()[0]
                stranger.send_multipart([identity, *frames])

        answering = threading.Thread(target=answer)
        answering.start()
        for _ in range(3):
            with pytest.raises((Corrupt, SlotGone, PeerUnreachable)):
                read(engine, dataclasses.replace(source, address=f"tcp://127.0.0.1:{port}"))
        answering.join()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://nowhere.invalid:1", "@nobody", ""])
def test_bad_addresses_are_unreachable(engine: Engine, start: Start, address: str) -> None:
    source = dataclasses.replace(start().publish(1), address=address)
    with pytest.raises(PeerUnreachable, match="30101"):
        read(engine, source)


def test_closing_ends_reads_under_way(start: Start, kind: str) -> None:
    engine = make_engine(kind, secrets.token_hex(8))
    engine.start({})
    descriptors = len(os.listdir("/proc/self/fd"))
    producer = start()
    source = producer.publish(100)
    producer.freeze()
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read, engine, source, 60)
        eventually(lambda: len(os.listdir("/proc/self/fd")) > descriptors + 2)  # the pipes to the producer
        engine.close()
        assert isinstance(reading.exception(), PeerUnreachable)
    producer.resume()
    with pytest.raises(PeerUnreachable, match="closed"):
        read(engine, source)


def test_zmq_listens_where_it_is_told() -> None:
    with pytest.raises(ValueError, match="advertise"):
        ZmqEngine("1", "0.0.0.0")
    for host, advertise, expected in (
        ("0.0.0.0", "role-0.example", "tcp://role-0.example:"),
        ("::1", None, "tcp://[::1]:"),
        ("localhost", None, "tcp://localhost:"),
    ):
        engine = ZmqEngine("1", host, 0, advertise)
        engine.start({})
        assert engine.address.startswith(expected)
        taken = ZmqEngine("1", host, int(engine.address.rpartition(":")[2]), advertise)
        with pytest.raises(OSError, match="cannot listen"):
            taken.start({})
        taken.close()
        engine.close()
