"""Orchestrator and roles that know each other by a token or by certificates, and those that do not."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trustme

from orchestrator import call_errors, main
from orchestrator.credentials import Credentials
from orchestrator.jobs import Status
from orchestrator.peers import Peer
from services.credentials import Credentials as RoleCredentials
from services.role import Role
from tests.certificates import pem_files, private_file, tls_files
from tests.cluster import Cluster, finished, until
from tests.orchestrator.fake_role import FakeRole, frame, hello
from transfer.secrets import write_token
from transfer.tls import TlsFiles
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

TOKEN = "s3cret-t0ken-of-a-cluster"
OTHER = "an0ther-t0ken-of-a-cluster"


def cluster_of(directory: Path, ours: Credentials, theirs: RoleCredentials) -> Cluster:
    cluster = Cluster(directory, credentials=ours)
    for instance in cluster.roles:
        instance.credentials = theirs
    return cluster


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("with_tls", [True, False])
async def test_a_cluster_with_credentials_works(tmp_path: Path, with_token: bool, with_tls: bool) -> None:
    authority = trustme.CA()
    token = TOKEN if with_token else None

    def tls(name: str) -> TlsFiles | None:
        return tls_files(tmp_path / name, authority) if with_tls else None

    ours, theirs = Credentials(token, tls("ours")), RoleCredentials(token, tls("theirs"))
    async with cluster_of(tmp_path, ours, theirs) as cluster:
        jobs = [await cluster.submit(f"prompt {number}") for number in range(3)]
        await finished(*jobs)
        assert [job.status for job in jobs] == [Status.COMPLETED] * 3
        (decoder,) = cluster.of(Role.DECODER)
        peer, file = cluster.orchestrator.peers[decoder.url], jobs[0].file
        assert file is not None
        path = decoder.directory / file.name
        data = [chunk async for chunk in peer.read_file(file.name, 3, 100)]
        assert b"".join(data) == path.read_bytes()[3:103]
        await peer.delete_file(file.name)
        assert not path.exists()
        await cluster.slots_back()


class Alone:
    """Listens to a peer of which nothing is expected."""

    def __init__(self) -> None:
        self.joins = 0

    def refusal(self, life: Any) -> str:
        return ""

    def joined(self, life: Any, hello: pb.Hello) -> None:
        self.joins += 1

    def left(self, life: Any) -> None: ...

    def received(self, life: Any, event: pb.Event) -> None: ...


async def refused(url: EndpointURL, credentials: Credentials) -> str:
    """Why a peer at ``url`` is refused, after several tries."""
    with patch.object(call_errors, "refusal", wraps=call_errors.refusal) as asked:
        peer = Peer(url, "encoder", Alone(), credentials)
        try:
            await until(lambda: asked.call_count >= 3)
        finally:
            await peer.close()
    assert peer.state.value == "refused" and peer.life is None
    return peer.refusal


async def test_an_orchestrator_without_the_token_is_refused_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for ours in (Credentials(), Credentials(OTHER)):
        (encoder,) = cluster_of(tmp_path, ours, RoleCredentials(TOKEN)).of(Role.ENCODER)
        await encoder.start()
        caplog.clear()
        try:
            assert "it does not accept our token" in await refused(encoder.url, ours)
        finally:
            await encoder.stop()
        lines = [record for record in caplog.records if record.name == "orchestrator.peers"]
        assert len(lines) == 1 and "--cluster-token-file" in lines[0].getMessage()


async def test_a_refused_peer_is_shown_and_taken_once_it_has_the_token(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, Credentials(TOKEN), RoleCredentials(OTHER))
    for instance in cluster.roles:
        await instance.start()
    await cluster.start_orchestrator()
    try:
        await until(lambda: all(peer.refusal for peer in cluster.orchestrator.peers.values()))
        for entry in cluster.orchestrator.peer_entries():
            assert entry["state"] == "refused" and "token" in str(entry["refusal"])
        assert set(cluster.orchestrator.missing_roles()) == {role.value for role in Role}
        for instance in cluster.roles:
            await instance.stop()
            instance.credentials = RoleCredentials(TOKEN)
            await instance.start()
        await until(lambda: len(cluster.orchestrator.peers.lives()) == 3)
        assert [entry["state"] for entry in cluster.orchestrator.peer_entries()] == ["ready"] * 3
    finally:
        await cluster.__aexit__()


async def test_the_token_goes_to_a_role_that_does_not_ask_for_it() -> None:
    """It proves the orchestrator to the role, not the role to the orchestrator."""

    async def script(role: FakeRole) -> Any:
        yield frame(pb.Event(hello=hello("encoder")))

    async with FakeRole(script, stays=True) as fake:
        listener = Alone()
        peer = Peer(fake.url, "encoder", listener, Credentials(TOKEN))
        await until(lambda: listener.joins == 1)
        assert fake.metadata["authorization"] == f"Bearer {TOKEN}"
        await peer.close()


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ("forged", "not signed by our --tls-ca"),
        ("elsewhere", "for another host"),
        ("plain", "does not speak TLS"),
        ("distrusting", "hangs up"),
    ],
)
async def test_a_role_with_another_certificate_is_refused(tmp_path: Path, theirs: str, reason: str) -> None:
    ours, strange = trustme.CA(), trustme.CA()
    orchestrator = Credentials(None, tls_files(tmp_path / "ours", ours, "orchestrator.example"))
    files = {
        "forged": tls_files(tmp_path / "forged", strange, trusted=ours),
        "elsewhere": tls_files(tmp_path / "elsewhere", ours, "10.1.2.3"),
        "plain": None,
        "distrusting": tls_files(tmp_path / "distrusting", ours, trusted=strange),
    }
    (encoder,) = cluster_of(tmp_path, orchestrator, RoleCredentials(None, files[theirs])).of(Role.ENCODER)
    await encoder.start()
    try:
        assert reason in await refused(encoder.url, orchestrator)
        assert not encoder.server.attached
    finally:
        await encoder.stop()


async def test_an_orchestrator_without_tls_is_not_heard(tmp_path: Path) -> None:
    theirs = RoleCredentials(None, tls_files(tmp_path / "theirs", trustme.CA()))
    (encoder,) = cluster_of(tmp_path, Credentials(), theirs).of(Role.ENCODER)
    await encoder.start()
    try:
        assert "it may want TLS" in await refused(encoder.url, Credentials())
    finally:
        await encoder.stop()


# ---- the options


def arguments(directory: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    return parser.parse_args(["--data-dir", str(directory / "data"), "--port", "0", *words])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--cluster-token-file", "{}/none"], "none"),
        (["--cluster-token-file", "{}/short"], "short: expected one word"),
        (["--cluster-token-file", "{}/open"], "open: mode 0644"),
        (["--tls-key", "{}/key.pem"], "--tls-cert and --tls-ca: not given"),
        (["--tls-cert", "{}/cert.pem", "--tls-key", "{}/key.pem", "--tls-ca", "{}/short"], "short: expected"),
    ],
)
def test_bad_files_stop_the_orchestrator_by_one_line(
    tmp_path: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pem_files(tmp_path, trustme.CA())
    private_file(tmp_path / "short", b"fifteen-letters")
    private_file(tmp_path / "open", TOKEN.encode(), 0o644)
    assert main.run(arguments(tmp_path, *(word.format(tmp_path) for word in words))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("triptych orchestrator: ") and named in err
    assert not (tmp_path / "data").exists()


def test_an_open_orchestrator_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_token(tmp_path / "token")
    token = Credentials.from_arguments(arguments(tmp_path, "--cluster-token-file", str(tmp_path / "token")))
    for host, known_by in (("127.0.0.1", Credentials()), ("::1", Credentials()), ("0.0.0.0", token)):
        main._warn_if_open(host, 1, known_by)
    assert caplog.records == []
    main._warn_if_open("0.0.0.0", 30010, Credentials())
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("0.0.0.0:30010 is open to the network") and "--cluster-token-file" in line
