"""Transfer keys: who has them reads, who has none or others reads nothing and is told why."""

import argparse
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from services.main import run
from services.options import RoleOptions, add_arguments
from services.role import Role
from tests.transfer.node import Node
from transfer.engines import curve
from transfer.engines.base import Source
from transfer.engines.zmq import ZmqEngine
from transfer.errors import PeerUnreachable, ReadTimeout
from transfer.keys import TransferKeys
from transfer.pool import SlotLocation
from transfer.urls import EndpointURL

Start = Callable[[Path | None], Node]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | None]:
    for name in ("ours", "theirs"):
        TransferKeys.generate().save(tmp_path / name)
    return {"ours": tmp_path / "ours", "theirs": tmp_path / "theirs", "none": None}


@pytest.fixture
def start() -> Iterator[Start]:
    nodes: list[Node] = []

    def start(keys: Path | None) -> Node:
        nodes.append(Node("127.0.0.1", ["zmq"], 16 << 20, keys))
        return nodes[-1]

    yield start
    for node in nodes:
        node.kill()


def test_only_the_same_keys_read(files: dict[str, Path | None], start: Start) -> None:
    nodes = {name: start(file) for name, file in files.items()}
    outputs = {name: node.put(5_000_000, seed=1) for name, node in nodes.items()}
    for reader, node in nodes.items():
        for server, output in outputs.items():
            outcome = node.fetch(output)
            if reader == server:
                assert outcome == ["zmq", output.digest]
            else:
                kind, message = outcome
                assert (kind, "transfer keys may differ" in message) == ("PeerUnreachable", True), message
                assert output.url in message
        assert node.slots_in_use() == [1, 0]


@pytest.fixture
def server() -> Iterator[tuple[ZmqEngine, TransferKeys]]:
    keys = TransferKeys.generate()
    engine = ZmqEngine("1", "127.0.0.1", keys=keys)
    engine.start({})
    yield engine, keys
    engine.close()


def is_refused(address: str, server_public: bytes, public: bytes, secret: bytes) -> bool:
    """Whether a client with these halves is sent away instead of being heard."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger, client.reconnect_ivl = 0, -1
        client.curve_serverkey, client.curve_publickey, client.curve_secretkey = server_public, public, secret
        watch = client.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            client.connect(address)
            client.send_multipart([b"1", b"outbox", bytes(32)])
            assert watch.poll(10_000)
            return parse_monitor_message(watch.recv_multipart())["event"] == zmq.EVENT_DISCONNECTED
        finally:
            client.disable_monitor()
            watch.close()


def test_the_public_half_opens_nothing(
    server: tuple[ZmqEngine, TransferKeys], caplog: pytest.LogCaptureFixture
) -> None:
    (engine, ours), theirs = server, TransferKeys.generate()
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert is_refused(engine.address, ours.public, theirs.public, theirs.secret)
        assert is_refused(engine.address, ours.public, ours.public, theirs.secret)  # pretending is not enough
    assert not is_refused(engine.address, ours.public, ours.public, ours.secret)
    assert [record.message for record in caplog.records if "refused" in record.message] == [
        "refused a connection from 127.0.0.1: it does not have our transfer keys"
    ]


def test_nobody_gets_in_when_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "_admit", lambda door, expected: door.close())
    engine = ZmqEngine("1", "127.0.0.1", keys=TransferKeys.generate())
    engine.start({})
    location = SlotLocation("outbox", 0, 1, 1, 0, b"")
    source = Source(EndpointURL("127.0.0.1", 30101), "1", engine.address, location)
    with pytest.raises((PeerUnreachable, ReadTimeout)):  # an answer, that the slot is gone, would be too much
        engine.read(source, memoryview(bytearray(1)), time.monotonic() + 1)
    engine.close()


def test_closing_while_peers_shake_hands() -> None:
    keys = TransferKeys.generate()
    for number in range(30):
        server = ZmqEngine("1", "127.0.0.1", keys=keys)
        server.start({})
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            client.curve_serverkey = client.curve_publickey = keys.public
            client.curve_secretkey = keys.secret
            client.connect(server.address)
            client.poll(number % 10)
            server.close()


def test_a_new_file_is_its_owners_alone_and_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "transfer.key"
    command = [sys.executable, "-m", "triptych", "keys", str(file)]
    before = os.umask(0)
    try:
        assert subprocess.run(command, check=False, timeout=60).returncode == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = TransferKeys.load(file)
    assert (len(keys.public), len(keys.secret)) == (40, 40)
    assert keys.secret.decode() not in repr(keys)
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 2
    assert "File exists" in again.stderr and str(file) in again.stderr
    assert TransferKeys.load(file) == keys


@pytest.mark.parametrize("mode", [0o604, 0o660, 0o602, 0o644])
def test_files_open_to_others_are_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "transfer.key"
    TransferKeys.generate().save(file)
    file.chmod(0o640)
    TransferKeys.load(file)
    file.chmod(mode)
    with pytest.raises(PermissionError, match=rf"transfer\.key: mode {mode:04o} is open to others"):
        TransferKeys.load(file)


GOOD = b"triptych-transfer-key " + b"x" * 40


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"\n", b"x" * 40, GOOD[:-1], GOOD + b"x", GOOD + b"\n\n", GOOD + b"\n" + GOOD),
        *(GOOD[:-1] + b"~", GOOD[:-1] + b"\xff", GOOD[:-5] + b"#####", GOOD.replace(b" ", b"  ")),
        bytes(10_000),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "transfer.key"
    file.touch(0o600)
    file.write_bytes(GOOD)
    TransferKeys.load(file)
    file.write_bytes(text)
    with pytest.raises(ValueError, match=r"transfer\.key: expected one line"):
        TransferKeys.load(file)


def test_a_role_says_what_is_wrong_with_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Role.ENCODER)
    words = ["--model", "M", "--url", "grpc://127.0.0.1:1", "--transfer-keys", str(tmp_path / "transfer.key")]
    args = parser.parse_args(words)
    assert run(Role.ENCODER, args) == 2
    assert "No such file" in (text := capsys.readouterr().err) and "transfer.key" in text
    keys = TransferKeys.generate()
    keys.save(args.transfer_keys)
    assert RoleOptions.from_arguments(Role.ENCODER, args).transfer_keys == keys
    args.transfer_keys.chmod(0o644)
    assert run(Role.ENCODER, args) == 2
    assert "open to others" in capsys.readouterr().err
