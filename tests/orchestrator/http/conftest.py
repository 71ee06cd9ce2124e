"""A server of the HTTP API on a real socket, over jobs in memory. Its replies are as the document says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import test_utils

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService


@pytest.fixture
def service(tmp_path: Path) -> MemoryService:
    return MemoryService(tmp_path / "previews")


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(max_body_bytes=64 << 10)


@pytest.fixture
async def api(
    service: MemoryService, options: HttpOptions, conformance: Conformance
) -> AsyncIterator[test_utils.TestClient]:
    app = conformance.watch(create_app(service, options))
    client = test_utils.TestClient(test_utils.TestServer(app))
    await client.start_server()
    yield client
    await client.close()
