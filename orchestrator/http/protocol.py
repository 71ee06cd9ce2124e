"""What reaches no handler is answered like everything else: bytes that are no HTTP, and unmet expectations.

aiohttp has no public way to answer these in another shape than its own text, or to log them without a
traceback.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from orchestrator.http.connections import cut_off
from orchestrator.http.errors import ApiError, from_aiohttp, new_request_id

log = logging.getLogger(__name__)


class Protocol(web.RequestHandler):
    """One connection. Clients can make no more than a line at debug level with what they send."""

    __slots__ = ("_cutting", "_send_timeout")

    def __init__(self, manager: web.Server, *, send_timeout: float, **options: Any) -> None:
        """``send_timeout`` is in seconds, for the client to make room for more."""
        super().__init__(manager, **options)
        self._send_timeout = send_timeout
        self._cutting: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        loop = asyncio.get_running_loop()
        self._cutting = loop.call_later(self._send_timeout, cut_off, self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._let_go()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._let_go()
        super().connection_lost(exc)

    def _let_go(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
            self._cutting = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Raises ConnectionError when there is no one to answer, or half an answer is out already."""
        if isinstance(exc, ConnectionError):
            raise exc
        if isinstance(exc, HttpProcessingError):
            log.debug("%s sent what is not HTTP: %r", request.remote, exc)
            lines = (message or str(exc)).splitlines() or [""]
            error = ApiError(status, f"this is not valid HTTP: {lines[0]}", code="invalid_http")
        else:
            self.log_exception("a request from %s failed", request.remote, exc_info=exc)
            error = ApiError(status, "internal error", code="internal_error")
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: it cannot become an error")
        response = _response(error)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # raised before any middleware: Expect is looked at first
            resp = _response(from_aiohttp(request, resp))
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """The rest of a body that nobody has asked for may be no HTTP either."""
        error = kw.get("exc_info")
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            log.debug("%s: %r", args[0], error)
        else:
            super().log_exception(*args, **kw)


class Server(web.Server):
    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An ``AppRunner`` whose connections are ``Protocol``s."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(made.request_handler, request_factory=made.request_factory, **self._kwargs)


def _response(error: ApiError) -> web.Response:
    response = error.response()
    response.headers["x-request-id"] = new_request_id()
    return response
