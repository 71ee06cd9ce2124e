"""Mooncake's own traps: late bytes, peers that hang, lives at one address, what it refuses to start with."""

import dataclasses
import importlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.transfer.producer import ARENA_BYTES, Producer, content
from transfer.endpoint import TransferEndpoint
from transfer.engines.base import Source
from transfer.engines.mooncake import (
    BLOCK_BYTES,
    BLOCKS,
    FIRST_BYTES,
    MAX_WAITING,
    MooncakeEngine,
)
from transfer.engines.mooncake_setup import MooncakeOptions
from transfer.errors import Corrupt, PeerUnreachable, ReadTimeout, SlotGone
from transfer.header import HEADER_BYTES
from transfer.urls import EndpointURL

pytest.importorskip("mooncake")

TRUSTED = MooncakeOptions(trusted_network=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def producer() -> Iterator[Producer]:
    peer = Producer("mooncake")
    yield peer
    peer.kill()


@pytest.fixture(scope="module")
def engine() -> Iterator[MooncakeEngine]:
    """One for all tests: it takes a second to close."""
    engine = MooncakeEngine(secrets.token_hex(8), "127.0.0.1", TRUSTED)
    engine.start({})
    yield engine
    engine.close()


def read(engine: MooncakeEngine, source: Source, seconds: float = 30) -> bytes:
    into = memoryview(bytearray(source.location.length))
    engine.read(source, into, time.monotonic() + seconds)
    return bytes(into)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sizes_about_the_first_part_and_the_blocks(engine: MooncakeEngine, producer: Producer) -> None:
    first = FIRST_BYTES - HEADER_BYTES
    for nbytes in (first - 1, first, first + 1, first + BLOCK_BYTES, first + 3 * BLOCK_BYTES + 1):
        source = producer.publish(nbytes, seed=nbytes)
        assert read(engine, source) == content(nbytes, seed=nbytes)
        producer.release(source)


def test_frozen_while_it_sends(engine: MooncakeEngine, producer: Producer) -> None:
    """What lands after the reader has given up lands in the staging blocks, and nowhere else."""
    nbytes = 8 * BLOCK_BYTES
    source = producer.publish(nbytes, seed=1)
    for _ in range(100):
        into = memoryview(bytearray(nbytes))
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(engine.read, source, into, time.monotonic() + 0.5)
            while not into[0] and not into[FIRST_BYTES] and not reading.done():
                pass
            producer.freeze()
            outcome = reading.exception()
        found = bytes(into)
        producer.resume()
        if outcome is not None:
            break
    assert isinstance(outcome, ReadTimeout)
    assert found != content(nbytes, seed=1)
    eventually(lambda: engine.busy_blocks == 0)
    assert into == found


def test_too_many_reads_given_up_on(engine: MooncakeEngine, producer: Producer) -> None:
    """A frozen peer holds one block for each; then reads are refused, until it is back or dead."""
    source = producer.publish(100, seed=1)
    producer.freeze()

    def give_up(_: int) -> str:
        with pytest.raises((ReadTimeout, PeerUnreachable)) as caught:
            read(engine, source, 0.05)
        return str(caught.value)

    with ThreadPoolExecutor(16) as readers:
        reasons = list(readers.map(give_up, range(BLOCKS + MAX_WAITING + 16)))
    assert engine.busy_blocks == BLOCKS
    assert "did not send everything in time" in reasons[0]
    assert f"all {BLOCKS} staging blocks" in reasons[-1]
    producer.resume()
    eventually(lambda: engine.busy_blocks == 0)
    assert read(engine, source) == content(100, seed=1)


def test_a_frozen_peer_does_not_hold_up_others(engine: MooncakeEngine, producer: Producer) -> None:
    stuck = producer.publish(100)
    producer.freeze()
    with pytest.raises(ReadTimeout):
        read(engine, stuck, 0.05)
    other = Producer("mooncake")
    assert read(engine, other.publish(5 * BLOCK_BYTES, seed=2), 10) == content(5 * BLOCK_BYTES, seed=2)
    other.kill()


def test_another_life_at_the_same_port_and_address(engine: MooncakeEngine, producer: Producer) -> None:
    """The same bytes in the same place under the same session: the generation alone tells the lives apart."""
    old = producer.publish(100, seed=1)
    assert read(engine, old) == content(100, seed=1)
    later = Producer("mooncake")
    new = later.publish(100, seed=1)
    moved = later.address.replace(later.incarnation, producer.incarnation)
    with pytest.raises(SlotGone, match="generation"):
        read(engine, dataclasses.replace(old, address=moved))
    assert read(engine, new) == content(100, seed=1)
    later.kill()


def test_outside_of_the_arena_is_not_asked_for(engine: MooncakeEngine, producer: Producer) -> None:
    source = producer.publish(100)
    for changes in ({"offset": 1 << 40}, {"offset": ARENA_BYTES - 4096, "length": 4096}, {"offset": -4096}):
        location = dataclasses.replace(source.location, **changes)
        with pytest.raises(Corrupt, match="ends at byte"):
            read(engine, dataclasses.replace(source, location=location))
    with pytest.raises(SlotGone, match="no arena inbox"):
        read(
            engine, dataclasses.replace(source, location=dataclasses.replace(source.location, arena="inbox"))
        )


def test_killed_while_it_sends(engine: MooncakeEngine, producer: Producer) -> None:
    nbytes = 8 * BLOCK_BYTES
    source = producer.publish(nbytes, seed=1)
    into = memoryview(bytearray(nbytes))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(engine.read, source, into, time.monotonic() + 10)
        while not into[0] and not reading.done():
            pass
        producer.kill()
        if (problem := reading.exception()) is None:  # it was quicker
            assert into == content(nbytes, seed=1)
        else:
            assert isinstance(problem, PeerUnreachable)
    with pytest.raises(PeerUnreachable, match="30101"):
        read(engine, source)
    eventually(lambda: engine.busy_blocks == 0)


async def test_endpoints_that_both_choose_it_use_it() -> None:
    url, life = EndpointURL.parse("grpc://127.0.0.1:30101"), secrets.token_hex(8)
    choices: tuple[tuple[str, ...], ...] = (("mooncake", "zmq"), ("mooncake", "zmq"), ("zmq",))
    endpoints = [
        await TransferEndpoint.start(url, life, 1 << 20, 1 << 20, engines, mooncake=TRUSTED)
        for engines in choices
    ]
    producer, consumer, plain = endpoints
    latents = torch.randn(2, 3, 5000, dtype=torch.bfloat16)
    held = await producer.put({"latents": latents}, 1)
    for endpoint, engine in ((consumer, "mooncake"), (plain, "zmq")):
        received = await endpoint.fetch(url, life, producer.addresses, held.location, 30)
        assert received.engine == engine
        assert torch.equal(received.values["latents"], latents)  # type: ignore[arg-type]
        received.release()
    held.release()
    for endpoint in endpoints:
        await endpoint.close()


def test_only_on_a_trusted_network() -> None:
    with pytest.raises(PermissionError, match=r"no authentication.*declared as trusted"):
        MooncakeOptions()


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'infiniband': expected one of"):
        MooncakeOptions("infiniband", trusted_network=True)
    for protocol in ("tcp", "nvlink"):
        with pytest.raises(ValueError, match=f"mlx5_0.*{protocol}"):
            MooncakeOptions(protocol, "mlx5_0", trusted_network=True)
    with pytest.raises(ValueError, match="advertise"):
        MooncakeEngine("1", "0.0.0.0", TRUSTED)
    with pytest.raises(OSError, match="IPv4"):
        MooncakeEngine("1", "::1", TRUSTED)


def test_rdma_never_falls_back_to_tcp() -> None:
    engine = MooncakeEngine("1", "127.0.0.1", MooncakeOptions("rdma", "none_0", trusted_network=True))
    with pytest.raises(OSError, match="no RDMA device none_0"):
        engine.start({})
    engine.close()


def test_nvlink_never_falls_back_to_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("mooncake.engine")

    def refusal() -> str:
        engine = MooncakeEngine("1", "127.0.0.1", MooncakeOptions("nvlink", trusted_network=True))
        with pytest.raises(OSError, match="protocol nvlink is not to be had") as refused:
            engine.start({})
        engine.close()
        return str(refused.value)

    for kind in ("INTRA_NVLINK", "MNNVL"):
        monkeypatch.setattr(library, f"SUPPORT_{kind}", False, raising=False)
    assert "mooncake-cu12" in refusal()
    monkeypatch.setattr(library, "SUPPORT_INTRA_NVLINK", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refusal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "slots lie in host memory" in refusal()


def test_the_environment_does_not_choose_the_transport() -> None:
    """With what an environment may hold, a build with NVLink would take that instead."""
    code = """if True:
        import os
        from transfer.engines.mooncake_setup import MooncakeOptions, initialize
        engine = initialize("127.0.0.1", MooncakeOptions(trusted_network=True))
        print([name for name in os.environ if "NVL" in name])
    """
    environment = {**os.environ, "MC_INTRANODE_NVLINK": "1", "MC_FORCE_MNNVL": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "[]"


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.engine", None)
    engine = MooncakeEngine("1", "127.0.0.1", TRUSTED)
    with pytest.raises(OSError, match=r"pip install 'triptych\[mooncake\]'.*libibverbs1"):
        engine.start({})
    engine.close()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--mooncake-trusted-network"),
        (["--rdma-device", "mlx5_0"], "mlx5_0"),
        (["--mooncake-protocol", "nvlink"], "protocol nvlink is not to be had"),
    ],
)
def test_a_role_says_why_it_does_not_start(words: list[str], reason: str) -> None:
    command = [sys.executable, "-m", "triptych", "encoder", "--model", "M", "--url", "grpc://127.0.0.1:1"]
    command += ["--transfer", "mooncake", *words, *(["--mooncake-trusted-network"] if words else [])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert reason in ended.stderr and "Traceback" not in ended.stderr
