"""Whom a role obeys: callers with the token, callers with a certificate; and what it says of the others."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.ports import free_port
from services import main
from services.credentials import MAX_NAMED, Credentials, TokenGate
from services.options import RoleOptions, add_arguments
from services.role import Role
from tests.certificates import pem_files, private_file, tls_files
from tests.cluster import RoleInstance
from transfer.secrets import write_token
from transfer.tls import TlsFiles
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2_grpc import RoleStub

TOKEN = "s3cret-t0ken-of-a-cluster"
RIGHT = (("authorization", f"Bearer {TOKEN}"),)
WRONG: list[Sequence[tuple[str, str | bytes]]] = [
    (),
    (("authorization", ""),),
    (("authorization", TOKEN),),
    (("authorization", f"Bearer {TOKEN}x"),),
    (("authorization", f"Bearer {TOKEN[:-1]}"),),
    (("authorization", f"Basic {TOKEN}"),),
    (("authorization-bin", f"Bearer {TOKEN}".encode()),),
    (("token", f"Bearer {TOKEN}"),),
]


@asynccontextmanager
async def decoder(directory: Path, credentials: Credentials) -> AsyncIterator[RoleInstance]:
    instance = RoleInstance(Role.DECODER, directory / "videos")
    instance.credentials = credentials
    await instance.start()
    try:
        yield instance
    finally:
        await instance.stop()


@asynccontextmanager
async def caller(instance: RoleInstance, tls: TlsFiles | None = None) -> AsyncIterator[grpc.aio.Channel]:
    if tls is None:
        channel = grpc.aio.insecure_channel(instance.url.target)
    else:
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
        channel = grpc.aio.secure_channel(instance.url.target, credentials)
    async with channel:
        yield channel


async def outcomes(stub: RoleStub, metadata: Sequence[tuple[str, str | bytes]]) -> list[grpc.StatusCode]:
    """Of every method of the contract, for a caller that sends ``metadata``."""

    async def attach() -> None:
        stream = stub.Attach(metadata=metadata)
        frame = await stream.read()
        assert isinstance(frame, pb.Events) and frame.events[0].HasField("hello")
        stream.cancel()

    async def read() -> None:
        async for _ in stub.ReadFile(pb.ReadFileRequest(name="none.mp4"), metadata=metadata):
            pass

    async def delete() -> None:
        await stub.DeleteFile(pb.DeleteFileRequest(name="none.mp4"), metadata=metadata)

    found = []
    for call in (attach, read, delete):
        try:
            await asyncio.wait_for(call(), 10)
            found.append(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            found.append(error.code())
    return found


async def test_only_the_token_opens_a_role(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with decoder(tmp_path, Credentials(TOKEN)) as instance, caller(instance) as channel:
        stub = RoleStub(channel)
        with caplog.at_level(logging.INFO):
            for metadata in WRONG:
                assert await outcomes(stub, metadata) == [grpc.StatusCode.UNAUTHENTICATED] * 3
        refused = [r.getMessage() for r in caplog.records if "without the cluster's token" in r.getMessage()]
        assert len(refused) == 1 and "127.0.0.1" in refused[0] and TOKEN not in caplog.text
        ok, not_found = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND
        assert await outcomes(stub, RIGHT) == [ok, not_found, ok]


async def test_a_refused_caller_changes_nothing(tmp_path: Path) -> None:
    async with decoder(tmp_path, Credentials(TOKEN)) as instance, caller(instance) as channel:
        kept = instance.directory / "kept.mp4"
        kept.write_bytes(b"video")
        with pytest.raises(grpc.aio.AioRpcError):
            await RoleStub(channel).DeleteFile(pb.DeleteFileRequest(name="kept.mp4"))
        assert kept.read_bytes() == b"video"
        assert not instance.server.attached


async def test_health_probes_need_no_token(tmp_path: Path) -> None:
    async with decoder(tmp_path, Credentials(TOKEN)) as instance, caller(instance) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="ready")
        )
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_role_without_a_token_does_not_look_at_one(tmp_path: Path) -> None:
    async with decoder(tmp_path, Credentials()) as instance, caller(instance) as channel:
        for metadata in ((), RIGHT):
            found = await outcomes(RoleStub(channel), metadata)
            assert grpc.StatusCode.UNAUTHENTICATED not in found


def test_a_flood_of_callers_does_not_fill_the_log_or_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    gate = TokenGate(TOKEN)
    for number in range(4 * MAX_NAMED):
        for _ in range(2):
            gate._note(f"ipv4:10.0.{number >> 8}.{number & 255}")
    assert len(caplog.records) == len(gate._named) == MAX_NAMED


async def test_tls_wants_a_certificate_of_the_authority(tmp_path: Path) -> None:
    ours, strange = trustme.CA(), trustme.CA()
    credentials = Credentials(None, tls_files(tmp_path / "role", ours))
    known = tls_files(tmp_path / "known", ours, "orchestrator.example")
    forged = tls_files(tmp_path / "forged", strange, "orchestrator.example", trusted=ours)
    async with decoder(tmp_path, credentials) as instance:
        async with caller(instance, known) as channel:
            assert grpc.StatusCode.OK in await outcomes(RoleStub(channel), ())
        for stranger in (forged, None):
            async with caller(instance, stranger) as channel:
                assert await outcomes(RoleStub(channel), RIGHT) == [grpc.StatusCode.UNAVAILABLE] * 3


async def test_token_and_tls_together(tmp_path: Path) -> None:
    authority = trustme.CA()
    credentials = Credentials(TOKEN, tls_files(tmp_path / "role", authority))
    known = tls_files(tmp_path / "known", authority)
    async with decoder(tmp_path, credentials) as instance, caller(instance, known) as channel:
        assert await outcomes(RoleStub(channel), ()) == [grpc.StatusCode.UNAUTHENTICATED] * 3
        assert grpc.StatusCode.OK in await outcomes(RoleStub(channel), RIGHT)


# ---- the options


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Role.ENCODER)
    url = f"grpc://127.0.0.1:{free_port()}"
    return parser.parse_args(["--model", "emulated:", "--url", url, *words])


def test_the_options_name_files(tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_token(token)
    cert, key, ca = map(str, pem_files(tmp_path, trustme.CA()))
    words = ["--cluster-token-file", str(token), "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca]
    options = RoleOptions.from_arguments(Role.ENCODER, arguments(*words))
    assert options.credentials.token == token.read_text().strip()
    assert options.credentials.tls is not None
    secret = options.credentials.tls.key.decode()
    assert options.credentials.token not in repr(options) and secret not in repr(options)
    assert not RoleOptions.from_arguments(Role.ENCODER, arguments()).credentials


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--cluster-token-file", "{}/none"], "none"),
        (["--cluster-token-file", "{}/empty"], "empty: expected one word"),
        (["--cluster-token-file", "{}/short"], "short: expected one word"),
        (["--cluster-token-file", "{}/open"], "open: mode 0644"),
        (["--tls-cert", "{}/cert.pem"], "--tls-key and --tls-ca: not given"),
        (["--tls-cert", "{}/short", "--tls-key", "{}/key.pem", "--tls-ca", "{}/ca.pem"], "short and"),
        (["--tls-cert", "{}/cert.pem", "--tls-key", "{}/key.pem", "--tls-ca", "{}/short"], "short: expected"),
    ],
)
def test_bad_files_stop_the_role_by_one_line(
    tmp_path: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pem_files(tmp_path, trustme.CA())
    private_file(tmp_path / "empty", b"")
    private_file(tmp_path / "short", b"fifteen-letters")
    private_file(tmp_path / "open", TOKEN.encode(), 0o644)
    assert main.run(Role.ENCODER, arguments(*(word.format(tmp_path) for word in words))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("triptych encoder: ") and named in err
    assert TOKEN not in err


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([], False),
        (["--listen", "0.0.0.0"], True),
        (["--listen", "[::]"], True),
        (["--listen", "localhost"], False),
        (["--listen", "0.0.0.0", "--cluster-token-file", "{}/token"], False),
    ],
)
def test_an_open_role_says_so(
    tmp_path: Path, words: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_token(tmp_path / "token")
    options = RoleOptions.from_arguments(Role.ENCODER, arguments(*(word.format(tmp_path) for word in words)))
    main._warn_if_open(options)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == warned
    assert not warned or "--cluster-token-file" in lines[0]
