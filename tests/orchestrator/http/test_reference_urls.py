"""Reference images by URL: fetched only where it is allowed, and within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import test_utils, web

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.reference_memory import ReferenceMemory
from orchestrator.targets import Targets
from tests.orchestrator.http.reference_requests import (
    JPEG,
    SENT,
    data_url,
    model,
    refused,
    sent,
)
from tests.orchestrator.http.service import MemoryService


@pytest.fixture(autouse=True)
def takes_images(service: MemoryService) -> None:
    service.served = [model()]


class Host:
    """A server of images, good ones and others; notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Any = SENT
        app = web.Application()
        app.router.add_get("/{name:.*}", self._get)
        self.server = test_utils.TestServer(app, host="127.0.0.1")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, dict(request.headers)))
        if callable(self.answer):
            response: web.StreamResponse = await self.answer(request)
            return response
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, content_type="image/png")
        return web.Response(**self.answer)

    def url(self, name: str = "a.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server.port}/{name}"


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.server.start_server()
    yield host
    await host.server.close()


@pytest.fixture
async def fetching(service: MemoryService, host: Host) -> AsyncIterator[test_utils.TestClient]:
    """A server that may fetch from the host."""
    targets = Targets([f"127.0.0.1:{host.server.port}"], "--reference-allow")
    options = HttpOptions(max_body_bytes=64 << 10, reference_targets=targets, reference_timeout=1.0)
    async with test_utils.TestClient(test_utils.TestServer(create_app(service, options))) as client:
        yield client


@pytest.mark.parametrize("name", ["input_reference", "reference_url", "image"])
async def test_a_url(fetching: test_utils.TestClient, service: MemoryService, host: Host, name: str) -> None:
    assert await sent(fetching, service, json={"prompt": "a", name: host.url("b.png?sig=x%2F")}) == (SENT,)
    ((path, headers),) = host.asked
    assert path == "/b.png?sig=x%2F"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & headers.keys()
    body = {"prompt": "a", name: {"image_url": host.url()}}
    assert await sent(fetching, service, json=body) == (SENT,)
    assert await sent(fetching, service, data={"prompt": "a", name: host.url()}) == (SENT,)


async def test_urls_and_files_together(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    host.answer = {"body": JPEG, "content_type": "application/octet-stream"}
    body = {"prompt": "a", "input_reference": [data_url(SENT), host.url()]}
    assert await sent(fetching, service, json=body) == (SENT, JPEG)


async def test_a_url_that_was_taken_is_not_fetched_again(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    for _ in range(2):
        body = {"prompt": "a", "input_reference": host.url()}
        await sent(fetching, service, json=body, headers={"Idempotency-Key": "k"})
    assert len(host.asked) == 1


async def test_urls_need_an_allow_list(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"prompt": "a", "input_reference": "https://images.example/a.png"}
    status, param, code, message = await refused(api, service, json=body)
    assert (status, param, code) == (400, "input_reference", "unsupported_field")
    assert "--reference-allow" in message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",  # another port
        "http://localhost:{port}/a.png",
        "http://127.1:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://0x7f000001:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://user:secret@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@evil.example/",
        "http://evil.example#@127.0.0.1:{port}/",
        "http://evil.example\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/ a",
        "http://127.0.0.1:{port}/\r\nX: y",
        "http://127.0.0.1:99999/",
        "http://",
        "https://127.0.0.1:{port}/" + "a" * 3000,
    ],
)
async def test_urls_that_are_not_allowed(
    fetching: test_utils.TestClient, service: MemoryService, host: Host, url: str
) -> None:
    body = {"prompt": "a", "input_reference": url.replace("{port}", str(host.server.port))}
    status, param, _, message = await refused(fetching, service, json=body)
    assert (status, param) == (400, "input_reference")
    assert len(message) < 400 and "secret" not in message
    assert host.asked == []


async def test_a_name_that_leads_inside(service: MemoryService, host: Host) -> None:
    targets = Targets([f"localhost:{host.server.port}"], "--reference-allow")
    app = create_app(service, HttpOptions(reference_targets=targets))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        body = {"prompt": "a", "input_reference": host.url(host="localhost")}
        status, _, code, message = await refused(client, service, json=body)
    assert (status, code) == (400, "reference_unavailable")
    assert "localhost has no public address" in message
    assert host.asked == []


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    await response.write(SENT)
    while True:
        await response.write(bytes(16 << 10))


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    for byte in SENT * 10:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return response


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "50000"})
    await response.prepare(request)
    await response.write(SENT)
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 404}, "answered 404"),
        ({"status": 500}, "answered 500"),
        ({"status": 204}, "answered 204"),
        ({"status": 302, "headers": {"Location": "/b.png"}}, "redirects are not followed"),
        ({"status": 307, "headers": {"Location": "http://169.254.169.254/"}}, "redirects are not followed"),
        ({"text": "<html>", "content_type": "text/html"}, "its type is 'text/html'"),
        ({"body": b"<svg/>", "content_type": "image/svg+xml"}, "its type is 'image/svg+xml'"),
        ({"body": b"<svg/>" * 100, "content_type": "image/png"}, "not a PNG, JPEG or WebP"),
        ({"body": b"", "content_type": "image/png"}, "not a PNG, JPEG or WebP"),
        ({"body": SENT + bytes(64 << 10), "content_type": "image/png"}, "more than 65536 bytes"),
        (
            {
                "body": b"\x1f\x8b" + SENT,
                "headers": {"Content-Encoding": "gzip"},
                "content_type": "image/png",
            },
            "not a PNG",
        ),
        (endless, "more than 65536 bytes"),
        (silent, "not there within 1 s"),
        (dripping, "not there within 1 s"),
        (cut_off, "ClientPayloadError"),
    ],
)
async def test_hosts_that_do_not_serve(
    fetching: test_utils.TestClient, service: MemoryService, host: Host, answer: Any, reason: str
) -> None:
    host.answer = answer
    body = {"prompt": "a", "input_reference": host.url()}
    status, param, code, message = await refused(fetching, service, json=body)
    assert (status, param, code) == (400, "input_reference", "reference_unavailable")
    assert reason in message
    assert len(host.asked) == 1


async def test_nobody_there(service: MemoryService, host: Host) -> None:
    port = host.server.port
    await host.server.close()
    targets = Targets([f"127.0.0.1:{port}"], "--reference-allow")
    app = create_app(service, HttpOptions(reference_targets=targets))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        body = {"prompt": "a", "input_reference": f"http://127.0.0.1:{port}/"}
        status, _, code, _ = await refused(client, service, json=body)
    assert (status, code) == (400, "reference_unavailable")


async def test_all_images_together_have_a_limit(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    host.answer = SENT + bytes(40 << 10)
    body = {"prompt": "a", "input_reference": [host.url(), host.url()]}
    status, _, code, message = await refused(fetching, service, json=body)
    assert (status, code) == (400, "reference_unavailable")
    assert "more than" in message


async def test_what_is_fetched_takes_up_memory(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    service.references = ReferenceMemory(10 << 10)
    host.answer = SENT + bytes(40 << 10)
    status, _, code, _ = await refused(fetching, service, json={"prompt": "a", "input_reference": host.url()})
    assert (status, code) == (429, "references_full")


def test_bad_entries() -> None:
    with pytest.raises(ValueError, match="--reference-allow 'https://x'"):
        Targets(["https://x"], "--reference-allow")
