"""Clients that vanish or hang leave nothing behind: no task, no file, no descriptor, no connection."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator.http.app import create_runner
from orchestrator.http.events import STREAMS
from orchestrator.http.options import HttpOptions
from tests.cluster import until
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService

CLIENTS = 8
BIG = 32 << 20  # more than sockets hold


PATIENT = HttpOptions(max_body_bytes=1 << 20)
SHORT = HttpOptions(max_body_bytes=1 << 20, body_timeout=0.5, download_timeout=0.5, linger_timeout=0.2)
SHORT_SENDS = HttpOptions(send_timeout=0.5)
SHORT_HEADERS = HttpOptions(header_timeout=1.0)
LEAVE = pytest.mark.parametrize(("options", "leave"), [(PATIENT, "reset"), (SHORT, "hang")])


@pytest.fixture
def options() -> HttpOptions:
    return PATIENT


@pytest.fixture
async def runner(
    service: MemoryService,
    options: HttpOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conformance: Conformance,
) -> AsyncIterator[web.AppRunner]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    runner = create_runner(service, options)
    conformance.watch(runner.app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner
    await runner.cleanup()


class Traces:
    """What a server has open; it must come back to that."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        assert self._runner.server is not None
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
            "connections": len(self._runner.server.connections),
            "files": len(os.listdir(tempfile.gettempdir())),
        }

    async def gone(self) -> None:
        try:
            await until(lambda: self._now() == self._before, 10.0)
        except AssertionError:
            raise AssertionError(f"left behind: {self._before} has become {self._now()}") from None


def connect(runner: web.AppRunner) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(runner.addresses[0])
    client.setblocking(False)
    return client


def reset(client: socket.socket) -> None:
    """As when a process dies in the middle: no goodbye, a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


async def opened(runner: web.AppRunner, count: int) -> None:
    server = runner.server
    assert server is not None
    await until(lambda: len(server.connections) == count)


FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
HALF_FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * 100_000
UPLOADS = {
    "json": b"Content-Type: application/json\r\nContent-Length: 500000\r\n\r\n"
    + b'{"prompt": "'
    + b"x" * 100_000,
    "file": FORM + b"Content-Length: 500000\r\n\r\n" + HALF_FORM,
    "chunks": FORM + b"Transfer-Encoding: chunked\r\n\r\n186f6\r\n" + HALF_FORM,
    "nothing": b"Content-Type: application/json\r\nContent-Length: 500000\r\n\r\n",
}


@LEAVE
@pytest.mark.parametrize("kind", UPLOADS)
async def test_half_an_upload(runner: web.AppRunner, service: MemoryService, kind: str, leave: str) -> None:
    traces = Traces(runner)
    clients = [connect(runner) for _ in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.sock_sendall(client, b"POST /v1/videos HTTP/1.1\r\nHost: x\r\n" + UPLOADS[kind])
    if leave == "reset":
        await opened(runner, CLIENTS)
    else:  # the server gives up first
        for client in clients:
            reply = await asyncio.wait_for(loop.sock_recv(client, 100), 10.0)
            assert b" 408 " in reply
    for client in clients:
        reset(client)
    await traces.gone()
    assert service.table == {}


@LEAVE
@pytest.mark.parametrize("source", ["file", "decoder"])
async def test_half_a_download(
    runner: web.AppRunner, service: MemoryService, tmp_path: Path, source: str, leave: str
) -> None:
    job = service.add()
    service.complete(job, b"\0" * BIG)
    if source == "file":
        service.path = tmp_path / "video"
        service.path.write_bytes(service.stored)
    traces = Traces(runner)
    clients = [connect(runner) for _ in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.sock_sendall(
            client, f"GET /v1/videos/{job.id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 200")
    if leave == "hang":  # cut off when the time for a download is over
        await opened(runner, 0)
    for client in clients:
        reset(client)
    await traces.gone()


@pytest.mark.parametrize("options", [SHORT_SENDS])
async def test_answers_that_nobody_reads(runner: web.AppRunner, service: MemoryService) -> None:
    for _ in range(100):
        service.complete(service.add())
    traces = Traces(runner)
    clients = [connect(runner) for _ in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.sock_sendall(client, b"GET /v1/videos?limit=100 HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    await opened(runner, CLIENTS)
    await opened(runner, 0)  # although the clients are still there
    for client in clients:
        client.close()
    await traces.gone()


@pytest.mark.parametrize("options", [SHORT_HEADERS])
@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-More: "])
async def test_connections_without_a_request(runner: web.AppRunner, sent: bytes) -> None:
    traces = Traces(runner)
    clients = [connect(runner) for _ in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.sock_sendall(client, sent)
    for client in clients:
        assert await asyncio.wait_for(loop.sock_recv(client, 1), 10.0) == b""  # hung up
        client.close()
    await traces.gone()


@pytest.mark.parametrize("options", [SHORT_HEADERS])
async def test_a_connection_that_was_used_stays(runner: web.AppRunner) -> None:
    loop = asyncio.get_running_loop()
    used, unused = connect(runner), connect(runner)
    for _ in range(2):
        await loop.sock_sendall(used, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await loop.sock_recv(used, 4096)
        if unused.fileno() >= 0:
            assert await asyncio.wait_for(loop.sock_recv(unused, 1), 10.0) == b""
            unused.close()
    used.close()


async def test_streams_and_waits(runner: web.AppRunner, service: MemoryService) -> None:
    job = service.add()
    traces = Traces(runner)
    clients = [connect(runner) for _ in range(CLIENTS)]
    body = b'{"prompt": "a"}'
    wait = b"POST /v1/videos/sync HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    asks = [
        f"GET /v1/videos/{job.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        wait + b"Content-Length: %d\r\n\r\n" % len(body) + body,
    ]
    loop = asyncio.get_running_loop()
    for number, client in enumerate(clients):
        await loop.sock_sendall(client, asks[number % 2])
    streams = runner.app[STREAMS]
    await until(lambda: len(streams) == service.waiting == CLIENTS // 2)
    for client in clients:
        reset(client)
    await traces.gone()
    assert len(streams) == service.waiting == len(service.watchers) == 0
    assert list(service.table) == [job.id]  # the others were taken with their clients
