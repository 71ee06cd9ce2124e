"""Errors in one shape wherever they arise; probes, metrics and models."""

from __future__ import annotations

import logging

import openai
import pytest
from aiohttp import test_utils, web

from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MODEL, MemoryService


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/videos/none", 404),
        ("PUT", "/v1/videos/none", 405),
        ("DELETE", "/v1/videos", 405),
        ("GET", "/v1/models/none", 404),
    ],
)
async def test_the_shape_of_errors(api: test_utils.TestClient, method: str, path: str, status: int) -> None:
    response = await api.request(method, path)
    assert response.status == status
    assert response.content_type == "application/json"
    error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["code"]
    assert response.headers["x-request-id"]


async def test_405_names_what_is_allowed(api: test_utils.TestClient) -> None:
    response = await api.put("/v1/videos")
    assert response.headers["Allow"] == "GET, HEAD, POST"


async def test_an_unexpected_exception(
    api: test_utils.TestClient, service: MemoryService, caplog: pytest.LogCaptureFixture
) -> None:
    service.refusal = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR, "orchestrator.http"):
        response = await api.post("/v1/videos", json={"prompt": "a"})
    assert (response.status, response.headers["x-should-retry"]) == (500, "false")
    error = (await response.json())["error"]
    request_id = response.headers["x-request-id"]
    assert error["type"] == "server_error"
    assert request_id in error["message"] and "secret detail" not in error["message"]
    assert any(request_id in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(("sent", "echoed"), [("abc-1", True), ("a b", 0), ("x" * 129, 0), ("", 0)])
async def test_request_ids(api: test_utils.TestClient, sent: str, echoed: bool) -> None:
    response = await api.get("/livez", headers={"X-Request-ID": sent})
    assert (response.headers["x-request-id"] == sent) == echoed


async def test_probes(api: test_utils.TestClient, service: MemoryService) -> None:
    assert await (await api.get("/health")).json() == {"status": "ok", "missing_roles": []}
    assert (await api.get("/readyz")).status == 200
    service.missing = ["denoiser"]
    response = await api.get("/readyz")
    assert response.status == 503
    assert "denoiser" in (await response.json())["error"]["message"]
    response = await api.get("/health")
    assert (response.status, (await response.json())["missing_roles"]) == (200, ["denoiser"])
    assert (await api.get("/livez")).status == 200


async def test_metrics(api: test_utils.TestClient) -> None:
    await api.post("/v1/videos", json={"prompt": "a"})
    response = await api.get("/metrics")
    assert response.content_type == "text/plain"
    text = await response.text()
    assert "# TYPE triptych_test_total counter\ntriptych_test_total 1.0" in text
    assert (await api.head("/metrics")).status == 200


async def test_models(api: test_utils.TestClient) -> None:
    async with openai.AsyncOpenAI(api_key="none", base_url=str(api.make_url("/v1"))) as client:
        assert [model.id async for model in client.models.list()] == [MODEL.name]
        assert (await client.models.retrieve(MODEL.name)).id == MODEL.name
    response = await api.get(f"/v1/models/{MODEL.name}")
    model = await response.json()
    assert (model["max_frames"], model["defaults"]["size"]) == (81, "64x32")


async def test_connections_outlive_the_pools_of_clients(service: MemoryService) -> None:
    runner = create_runner(service, HttpOptions())
    await runner.setup()
    assert runner.server is not None
    assert isinstance(protocol := runner.server(), web.RequestHandler)
    assert protocol.keepalive_timeout > 300
    await runner.cleanup()


@pytest.mark.parametrize(
    "wrong",
    [
        {"public_url": "example.org"},
        {"public_url": "ftp://x"},
        {"max_body_bytes": 0},
        {"body_timeout": 0.0},
        {"max_timeout_seconds": 0.0},
        {"cluster_token": ""},
        {"cluster_token": "two words"},
        {"cluster_token": "é"},
    ],
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HttpOptions(**wrong)  # type: ignore[arg-type]
