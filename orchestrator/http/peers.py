"""``/v1/peers``: the roles this orchestrator talks to, for operators."""

from __future__ import annotations

from aiohttp import web

from orchestrator.http.service import SERVICE


async def list_peers(request: web.Request) -> web.Response:
    """Every configured role in the order of the endpoint URLs."""
    return web.json_response({"object": "list", "data": list(request.app[SERVICE].peer_entries())})
