"""Connections on which no request arrives are closed, and clients that do not read are cut off: aiohttp
itself would keep them for ever.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from orchestrator.http.errors import Handler


def cut_off(transport: asyncio.BaseTransport | None) -> None:
    """Ends a connection whose client does not read. What the kernel has still to send goes with it: it would
    keep that for as long as the client cares to be there.
    """
    if not isinstance(transport, asyncio.WriteTransport):
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Connections:
    """Watches a server's new connections until the first request on each; from then on aiohttp does."""

    def __init__(self, timeout: float, server: Callable[[], web.Server | None]) -> None:
        """``timeout`` is in seconds, for all of the first request's headers."""
        self._timeout = timeout
        self._server = server
        self._used: set[RequestHandler] = set()
        self._since: dict[RequestHandler, float] = {}  # monotonic

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._used.add(request.protocol)
        return await handler(request)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``."""
        sweeping = asyncio.create_task(self._sweep())
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(self._timeout / 4, 5.0))
            server, now = self._server(), time.monotonic()
            there = set(server.connections) if server is not None else set()
            self._used &= there
            self._since = {handler: self._since.get(handler, now) for handler in there - self._used}
            for handler, since in self._since.items():
                if now - since > self._timeout:
                    handler.force_close()
