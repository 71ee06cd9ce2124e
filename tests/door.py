"""The HTTP door of an orchestrator that lives in the test process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from tests.cluster import Cluster


class Door:
    """Every call returns status, headers and body of the reply."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def ask(self, method: str, path: str, **fields: Any) -> tuple[int, Any, Any]:
        async with self._session.request(method, self.url + path, json=fields or None) as reply:
            return reply.status, reply.headers, await reply.json()


@asynccontextmanager
async def door(cluster: Cluster) -> AsyncIterator[Door]:
    runner = create_runner(cluster.orchestrator, HttpOptions())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session:
            yield Door(f"http://{host}:{port}", session)
    finally:
        await runner.cleanup()
