"""Between hosts: two network namespaces with a slow link that is cut, and comes back."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.transfer.node import Node

POOL_BYTES = 32 << 20
LARGE = 16 << 20
LINK = "160mbit"  # 20 MB a second: slow enough to be cut while something large is under way


@dataclass(frozen=True)
class Host:
    """A network namespace with one link."""

    name: str
    address: str

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def received(self) -> int:
        """Bytes that came over the link so far."""
        return int(json.loads(self.ip("-s", "-j", "link", "show", "eth0"))[0]["stats64"]["rx"]["bytes"])


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two of them, `10.77.0.1` and `10.77.0.2`, that reach each other and nothing else."""
    if not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("network namespaces: iproute2 is not installed")
    if os.geteuid() != 0:
        pytest.skip("network namespaces: only root may make them")
    mark = secrets.token_hex(4)
    pair = tuple(Host(f"triptych-{mark}-{number}", f"10.77.0.{number}") for number in (1, 2))
    try:
        run("ip", "netns", "add", pair[0].name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces: {error.stderr.strip()}")
    try:
        run("ip", "netns", "add", pair[1].name)
        pair[0].ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pair[1].name)
        for host in pair:
            host.ip("address", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", "eth0", "up")
            shape = ("root", "tbf", "rate", LINK, "burst", "256kb", "latency", "100ms")
            run("tc", "-n", host.name, "qdisc", "add", "dev", "eth0", *shape)
        yield pair[0], pair[1]
    finally:
        for host in pair:
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)


@pytest.fixture
def start(hosts: tuple[Host, Host]) -> Iterator[Callable[[Host, str], Node]]:
    nodes: list[Node] = []

    def start(host: Host, engine: str) -> Node:
        if engine == "mooncake":
            pytest.importorskip("mooncake")
        exec_there = ("ip", "netns", "exec", host.name)
        nodes.append(Node(host.address, ("shm", engine), POOL_BYTES, on=exec_there))
        return nodes[-1]

    yield start
    for node in nodes:
        node.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("engine", "seconds", "expected"),
    [
        ("zmq", 2, "ReadTimeout"),
        ("zmq", 120, "PeerUnreachable"),  # by silence, long before the deadline
        ("mooncake", 2, "ReadTimeout"),
    ],
)
def test_link_cut_in_the_middle_of_a_read(
    hosts: tuple[Host, Host],
    start: Callable[[Host, str], Node],
    engine: str,
    seconds: float,
    expected: str,
) -> None:
    producer, consumer = start(hosts[0], engine), start(hosts[1], engine)
    small, large = producer.put(1000, seed=1), producer.put(LARGE, seed=2)
    assert [address[0] for address in producer.addresses] == ["shm", engine]
    assert consumer.fetch(small) == [engine, small.digest]  # not by shared memory: that is another host's

    before = hosts[1].received()
    consumer.start_fetch(large, seconds)
    until(lambda: hosts[1].received() > before + LARGE // 8)
    hosts[0].ip("link", "set", "eth0", "down")
    kind, message = consumer.end_fetch()
    assert hosts[1].received() < before + LARGE
    assert kind == expected and producer.url in message
    assert consumer.slots_in_use() == [0, 0]

    hosts[0].ip("link", "set", "eth0", "up")
    assert consumer.fetch(large, 60) == [engine, large.digest]
    assert consumer.slots_in_use() == [0, 0]
