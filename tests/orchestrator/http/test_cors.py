"""CORS: which web pages a browser lets use the API."""

from __future__ import annotations

import pytest
from aiohttp import test_utils

from deploy.onebox import OneBox
from orchestrator.http.api_keys import ApiKeys
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MemoryService
from tests.test_options import parser_of

PAGE, OTHER = "https://studio.example:8443", "http://[::1]:3000"
KEY = "alices-secret-key-1"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(cors_origins=(PAGE, OTHER), api_keys=ApiKeys({KEY: "alice"}))


@pytest.mark.parametrize("origin", [PAGE, OTHER])
async def test_a_browser_may_ask_without_a_key(api: test_utils.TestClient, origin: str) -> None:
    response = await api.options("/v1/videos", headers={"Origin": origin, **ASKED})
    assert (response.status, await response.read()) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", [f"{PAGE}0", "http://studio.example:8443", "https://studio.example", "null", "*", ""]
)
async def test_other_pages(api: test_utils.TestClient, service: MemoryService, origin: str) -> None:
    response = await api.options("/v1/videos", headers={"Origin": origin, **ASKED})
    assert response.status == 401
    for reply in (
        response,
        await api.get("/v1/videos", headers={"Origin": origin, "Authorization": f"Bearer {KEY}"}),
    ):
        assert not [name for name in reply.headers if name.startswith("Access-Control")]
        assert reply.headers["Vary"] == "Origin"


async def test_every_reply_can_be_read(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.complete(job, b"data")
    known = {"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
    for path, headers, status in (
        ("/v1/videos", {"Origin": PAGE}, 401),
        ("/v1/videos", known, 200),
        ("/v1/none", known, 404),
        (f"/v1/videos/{job.id}/content", known, 200),
        ("/livez", {"Origin": PAGE}, 200),
    ):
        response = await api.get(path, headers=headers)
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("options", [HttpOptions()])
async def test_off_by_default(api: test_utils.TestClient, options: HttpOptions) -> None:
    response = await api.options("/v1/videos", headers={"Origin": PAGE, **ASKED})
    assert response.status == 405
    response = await api.get("/v1/videos", headers={"Origin": PAGE})
    assert not [name for name in response.headers if name.startswith("Access-Control") or name == "Vary"]


@pytest.mark.parametrize(
    "origin", ["*", "null", "studio.example", "https://*.example", "https://x/", "https://X", "ftp://x", ""]
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        HttpOptions(cors_origins=(origin,))


def test_up_hands_on_all_of_them() -> None:
    words = ["--model", "M", "--cors-origin", PAGE, "--cors-origin", OTHER]
    handed = OneBox.from_arguments(parser_of("up").parse_args(words))._server_arguments
    first = handed.index("--cors-origin")
    assert handed[first : first + 4] == ["--cors-origin", PAGE, "--cors-origin", OTHER]
