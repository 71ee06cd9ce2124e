"""Bytes that are no HTTP, or bad HTTP: an error in the shape of all others or a hang-up, and a quiet log."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MemoryService

# Short: who sends half of something is waited for until the server hangs up.
OPTIONS = HttpOptions(
    max_body_bytes=64 << 10, header_timeout=0.4, body_timeout=0.2, linger_timeout=0.1, keepalive_timeout=0.4
)
Reply = tuple[int, dict[str, str], bytes]
HOST = b"Host: x\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HTTP_1 = b" HTTP/1.1\r\n"


@pytest.fixture
async def port(service: MemoryService) -> AsyncIterator[int]:
    runner = create_runner(service, OPTIONS)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def exchange(port: int, sent: bytes) -> bytes:
    """All that comes back until the server hangs up, which it does in any case."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 20.0)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def replies(received: bytes) -> list[Reply]:
    """One after the other; ValueError for what is no HTTP."""
    found: list[Reply] = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise ValueError(first)
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(received) < length:
            raise ValueError(f"{length} bytes were promised, there are {len(received)}")
        if int(status) != 100:
            found.append((int(status), headers, received[:length]))
        received = received[length:]
    return found


def check(reply: Reply) -> int:
    """Every error has the one shape."""
    status, headers, body = reply
    if status >= 400:
        assert headers["content-type"].startswith("application/json"), (status, body)
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
        assert headers["x-request-id"]
    return status


async def alive(port: int) -> None:
    (reply,) = replies(await exchange(port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    assert reply[0] == 200


BAD = {
    "words": (b"hello there\r\n\r\n", 400),
    "method": (b"G\0T /livez HTTP/1.1\r\n\r\n", 400),
    "version": (b"GET /livez HTTP/9.9\r\n" + HOST + b"\r\n", 400),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "path": (b"GET /li vez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "long path": (b"GET /" + b"x" * 100_000 + HTTP_1 + HOST + b"\r\n", 400),
    "long header": (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 400),
    "many headers": (b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 400),
    "header name": (b"GET /livez HTTP/1.1\r\nX Y: z\r\n\r\n", 400),
    "header value": (b"GET /livez HTTP/1.1\r\nX: \0\r\n\r\n", 400),
    "two lengths": (b"POST /v1/videos HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length": (b"POST /v1/videos HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
    "smuggling": (b"POST /v1/videos HTTP/1.1\r\nContent-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "chunk": (b"POST /v1/videos HTTP/1.1\r\n" + HOST + FORM + CHUNKED + b"\r\nZZ\r\n", 400),
    "deflated": (
        b"POST /v1/videos HTTP/1.1\r\nContent-Encoding: deflate\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4\r\n\r\nabcd",
        400,
    ),
    "expectation": (b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nConnection: close\r\n\r\n", 417),
    "expectation of nobody": (
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nConnection: close\r\n\r\n",
        417,
    ),
    "tunnel": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_http(port: int, name: str, caplog: pytest.LogCaptureFixture) -> None:
    sent, status = BAD[name]
    with caplog.at_level(logging.INFO):
        found = replies(await exchange(port, sent))
        assert [check(reply) for reply in found] == [status]
        await alive(port)
    assert not caplog.records


async def test_what_is_wrong_is_said_and_noted_once(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "orchestrator.http"):
        ((_, _, body),) = replies(await exchange(port, BAD["header name"][0]))
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_http"
    assert "header" in error["message"] and "\n" not in error["message"]
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and not record.exc_info and "127.0.0.1" in record.getMessage()


@pytest.mark.parametrize(
    ("good", "bad", "statuses"),
    [
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n", b"nonsense\r\n\r\n", [200, 400]),
        # The rest of a body that nobody wants, after its request was answered.
        (b"POST /nowhere HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n5\r\nabcde\r\n", b"ZZ\r\n", [404]),
    ],
)
async def test_a_good_beginning_is_answered(
    port: int, good: bytes, bad: bytes, statuses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with caplog.at_level(logging.INFO):
        writer.write(good)
        received = await asyncio.wait_for(reader.readuntil(b"}"), 20.0)
        writer.write(bad)
        received += await asyncio.wait_for(reader.read(), 20.0)
        writer.close()
        await alive(port)
    assert [check(reply) for reply in replies(received)] == statuses
    assert not caplog.records


async def test_tls_on_the_plain_port(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
        await alive(port)
    assert not caplog.records


# Pieces from which fuzzing puts together what looks like HTTP, beside bytes at random.
PIECES = [
    b"GET ", b"POST ", b"DELETE ", b"OPTIONS ", b"/v1/videos", b"/livez", b"/v1/videos/x/events",
    HTTP_1, b" HTTP/1.0\r\n", b"\r\n", b"\r\n\r\n", HOST, FORM, CHUNKED, b"Expect: x\r\n",
    b"Content-Type: application/json\r\n",
    b"Content-Length: 10\r\n", b"Content-Length: 99999999\r\n", b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Range: bytes=9-1\r\n", b"Content-Encoding: gzip\r\n",
    b"Authorization: Bearer \xff\r\n", b"Origin: null\r\nAccess-Control-Request-Method: GET\r\n",
    b'{"prompt": "a"}', b"--b\r\n", b'Content-Disposition: form-data; name="prompt"\r\n\r\na', b"--b--\r\n",
    b"5\r\nabcde\r\n", b"0\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\n",
]  # fmt: skip
GARBAGE = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=14).map(b"".join)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(GARBAGE, min_size=1, max_size=40))
def test_any_bytes(sent: list[bytes]) -> None:
    log = Noise()
    root = logging.getLogger()
    root.addHandler(log)
    try:
        asyncio.run(fuzz(sent))
    finally:
        root.removeHandler(log)
    assert not log.lines


class Noise(logging.Handler):
    """Whatever is logged at warning or above, by any part of the process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


async def fuzz(sent: list[bytes]) -> None:
    service = MemoryService()
    runner = create_runner(service, OPTIONS)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        for received in await asyncio.gather(*(exchange(port, one) for one in sent)):
            for reply in replies(received):
                check(reply)
        await alive(port)
    finally:
        await runner.cleanup()
