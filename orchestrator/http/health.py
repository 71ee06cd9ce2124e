"""Probes and metrics: ``/health``, ``/livez``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import prometheus_client
from aiohttp import web

from orchestrator.http.errors import ApiError
from orchestrator.http.service import SERVICE

RETRY_SECONDS = 5


async def health(request: web.Request) -> web.Response:
    """200 as long as the event loop lives; says which roles are missing."""
    missing = list(request.app[SERVICE].missing_roles())
    return web.json_response({"status": "waiting_for_roles" if missing else "ok", "missing_roles": missing})


async def livez(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """200 when every role has a live instance, else 503."""
    missing = request.app[SERVICE].missing_roles()
    if missing:
        raise not_ready(f"no live instance of: {', '.join(missing)}")
    return web.json_response({"status": "ok"})


async def metrics(request: web.Request) -> web.Response:
    text = prometheus_client.generate_latest(request.app[SERVICE].registry)
    return web.Response(body=text, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})


def not_ready(message: str) -> ApiError:
    return ApiError(503, message, code="not_ready", headers={"Retry-After": str(RETRY_SECONDS)})
