"""Roles that announce themselves, draining, and who may ask for either."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import test_utils, web

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService
from transfer.urls import EndpointURL

URL = "grpc://127.0.0.1:1"
TOKEN = "s3cret-t0ken-of-a-cluster"


async def post(api: test_utils.TestClient, path: str, body: object, **headers: str) -> tuple[int, Any]:
    response = await api.post(path, json=body, headers=headers)
    return response.status, await response.json()


async def test_announce(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"url": "GRPC://Node-A:30101/", "role": "denoiser"}
    reply = {"object": "peer", "url": "grpc://node-a:30101", "role": "denoiser"}
    assert await post(api, "/v1/peers", body) == (200, reply)
    assert service.announced == [(EndpointURL("node-a", 30101), "denoiser")]
    service.peer_refusal = "it is an encoder here"
    status, reply = await post(api, "/v1/peers", body)
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (409, "peer_refused", "url")
    assert "it is an encoder here" in reply["error"]["message"]


async def test_drain(api: test_utils.TestClient, service: MemoryService) -> None:
    expected = {"object": "peer", "url": URL, "state": "draining", "incarnation": "11aa"}
    assert await post(api, "/v1/peers/drain", {"url": URL}) == (200, expected)
    (entry,) = (await (await api.get("/v1/peers")).json())["data"]
    assert entry["state"] == "draining"
    status, reply = await post(api, "/v1/peers/drain", {"url": "grpc://127.0.0.1:2"})
    assert (status, reply["error"]["code"]) == (404, "peer_not_found")


@pytest.mark.parametrize("path", ["/v1/peers", "/v1/peers/drain"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": None}, "url"),
        ({"url": 1}, "url"),
        ({"url": "http://a:1"}, "url"),
        ({"url": "grpc://a:99999"}, "url"),
        ({"url": "grpc://" + "a" * 300}, "url"),
        ({"url": "grpc://a\0:1"}, "url"),
        ({"url": URL, "port": 1}, "port"),
        ([], None),
    ],
)
async def test_bad_requests(
    api: test_utils.TestClient, service: MemoryService, path: str, body: object, param: str | None
) -> None:
    if isinstance(body, dict) and path == "/v1/peers":
        body = {"role": "encoder", **body}
    status, reply = await post(api, path, body)
    assert (status, reply["error"]["param"]) == (400, param)
    assert not service.announced and service.peers[URL]["state"] == "ready"


@pytest.mark.parametrize("role", ["", "Encoder", "console", None, 7])
async def test_bad_roles(api: test_utils.TestClient, service: MemoryService, role: object) -> None:
    status, reply = await post(api, "/v1/peers", {"url": URL, "role": role})
    assert (status, reply["error"]["param"]) == (400, "role")
    assert not service.announced


async def test_forms_are_refused(api: test_utils.TestClient, service: MemoryService) -> None:
    response = await api.post("/v1/peers", data={"url": URL, "role": "encoder"})
    assert (response.status, (await response.json())["error"]["code"]) == (415, "content_type")
    assert not service.announced


@pytest.mark.parametrize("options", [HttpOptions(cluster_token=TOKEN)])
@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer", False),
        ("Bearer é", False),
        (None, False),
    ],
)
async def test_the_token(
    api: test_utils.TestClient,
    service: MemoryService,
    options: HttpOptions,
    given: str | None,
    accepted: bool,
) -> None:
    headers = {} if given is None else {"Authorization": given}
    for path, body in (("/v1/peers", {"url": URL, "role": "encoder"}), ("/v1/peers/drain", {"url": URL})):
        response = await api.post(path, json=body, headers=headers)
        assert response.status == (200 if accepted else 401)
        assert response.headers.get("WWW-Authenticate") == (None if accepted else "Bearer")
        assert TOKEN not in await response.text()
    assert bool(service.announced) == accepted == (service.peers[URL]["state"] == "draining")
    assert (await api.get("/v1/peers")).status == 200
    assert TOKEN not in repr(options)


@web.middleware
async def from_elsewhere(request: web.Request, handler: Any) -> web.StreamResponse:
    """As if the connection came from the address in a header of the test."""
    address = request.headers.get("Test-Remote", "127.0.0.1")
    response: web.StreamResponse = await handler(request.clone(remote=address))
    return response


@pytest.fixture
async def api_from(service: MemoryService, options: HttpOptions, conformance: Conformance) -> Any:
    app = conformance.watch(create_app(service, options))
    app.middlewares.append(from_elsewhere)
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Test-Remote", "127.0.0.1", 200),
        ("Test-Remote", "127.8.9.1", 200),
        ("Test-Remote", "::1", 200),
        ("Test-Remote", "::ffff:127.0.0.1", 200),
        ("Test-Remote", "10.0.0.1", 403),
        ("Test-Remote", "::ffff:10.0.0.1", 403),
        ("Test-Remote", "fe80::1%eth0", 403),
        ("Test-Remote", "", 403),
        ("X-Forwarded-For", "127.0.0.1", 403),
        ("Forwarded", "for=127.0.0.1", 403),
        ("Origin", "http://127.0.0.1:30010", 403),
    ],
)
async def test_without_a_token_only_this_host(
    api_from: test_utils.TestClient, service: MemoryService, name: str, value: str, status: int
) -> None:
    body = {"url": URL, "role": "encoder"}
    for path in ("/v1/peers", "/v1/peers/drain"):
        got, reply = await post(
            api_from, path, body if path == "/v1/peers" else {"url": URL}, **{name: value}
        )
        assert got == status
        if status == 403:
            assert "--cluster-token-file" in reply["error"]["message"]
    assert bool(service.announced) == (status == 200)
    assert (await api_from.get("/v1/peers", headers={name: value})).status == 200


@pytest.mark.parametrize("options", [HttpOptions(cluster_token=TOKEN)])
async def test_with_the_token_from_anywhere(
    api_from: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    headers = {"Test-Remote": "10.0.0.1", "X-Forwarded-For": "10.0.0.2", "Authorization": f"Bearer {TOKEN}"}
    status, _ = await post(api_from, "/v1/peers/drain", {"url": URL}, **headers)
    assert status == 200
    del headers["Authorization"], headers["X-Forwarded-For"]
    headers["Test-Remote"] = "127.0.0.1"
    assert (await post(api_from, "/v1/peers/drain", {"url": URL}, **headers))[0] == 401
