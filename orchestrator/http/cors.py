"""CORS: which web pages may use the API from a browser. None, unless an origin is allowed by name."""

from __future__ import annotations

from aiohttp import web

from orchestrator.http.errors import Handler
from orchestrator.http.service import OPTIONS

MAX_AGE_SECONDS = 600  # for which a browser need not ask again

_METHODS = "GET, HEAD, POST, DELETE"
_REQUEST_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range"
)
_REPLY_HEADERS = (
    "Content-Disposition, Content-Range, ETag, Retry-After, X-Ignored-Fields, X-Inference-Time-S,"
    " X-Peak-Memory-MB, X-Request-ID, X-Video-Id"
)


@web.middleware
async def cors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers the question that a browser asks before a request, and without a key."""
    asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if not (asked and _allowed(request)):
        return await handler(request)
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _REQUEST_HEADERS,
        "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
    }
    return web.Response(status=204, headers=headers)


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """An ``on_response_prepare`` signal: it also reaches errors and replies that are streamed.

    Credentials are never allowed: those of the API are headers that a page must set itself.
    """
    if not request.app[OPTIONS].cors_origins:
        return
    response.headers.add("Vary", "Origin")
    if _allowed(request):
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers["Access-Control-Expose-Headers"] = _REPLY_HEADERS


def _allowed(request: web.Request) -> bool:
    return request.headers.get("Origin") in request.app[OPTIONS].cors_origins
