"""A server of the HTTP API on a real socket, over jobs in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import test_utils

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MemoryService


@pytest.fixture
def service(tmp_path: Path) -> MemoryService:
    return MemoryService(tmp_path / "previews")


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(max_body_bytes=64 << 10)


@pytest.fixture
async def api(service: MemoryService, options: HttpOptions) -> AsyncIterator[test_utils.TestClient]:
    client = test_utils.TestClient(test_utils.TestServer(create_app(service, options)))
    await client.start_server()
    yield client
    await client.close()
