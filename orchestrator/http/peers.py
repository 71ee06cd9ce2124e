"""``/v1/peers``: the roles this orchestrator talks to, for operators and for roles that join."""

from __future__ import annotations

from aiohttp import web

from orchestrator.graph import GENERATION
from orchestrator.http.auth import require_operator
from orchestrator.http.body import read_fields
from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.fields import text
from orchestrator.http.service import OPTIONS, SERVICE
from transfer.urls import EndpointURL

MAX_URL_CHARS = 300


async def list_peers(request: web.Request) -> web.Response:
    """Every known role in the order of the endpoint URLs."""
    return web.json_response({"object": "list", "data": list(request.app[SERVICE].peer_entries())})


async def announce(request: web.Request) -> web.Response:
    """A role that is at ``url`` from now on; repeating it changes nothing."""
    require_operator(request)
    fields = await _fields(request, "url", "role")
    url, role = _url(fields["url"]), fields["role"]
    if role not in GENERATION.roles:
        raise invalid("role", f"role must be one of {', '.join(GENERATION.roles)}, not {role[:64]!r}")
    refusal = await request.app[SERVICE].announce(url, role)
    if refusal:
        raise ApiError(409, f"{role} at {url} is refused: {refusal}", code="peer_refused", param="url")
    return web.json_response({"object": "peer", "url": str(url), "role": role})


async def drain(request: web.Request) -> web.Response:
    """The peer takes no new task; ``incarnation`` says which life of it was asked."""
    require_operator(request)
    url = _url((await _fields(request, "url"))["url"])
    service = request.app[SERVICE]
    if not service.drain(url):
        raise ApiError(404, f"no peer is connected at {url}", code="peer_not_found", param="url")
    entry = next(entry for entry in service.peer_entries() if entry["url"] == str(url))
    reply = {"object": "peer", "url": str(url), "state": "draining", "incarnation": entry.get("incarnation")}
    return web.json_response(reply)


async def _fields(request: web.Request, *names: str) -> dict[str, str]:
    """The strings of exactly these names. Raises ApiError as ``read_fields`` does, and 400 naming a field."""
    if request.content_type != "application/json":  # a web page may send forms anywhere, JSON it may not
        raise ApiError(
            415, f"content-type {request.content_type} is not application/json", code="content_type"
        )
    with request.app[SERVICE].references.share() as share:
        given = await read_fields(request, request.app[OPTIONS], share)
    for name in given:
        if name not in names:
            raise invalid(name[:64], f"unknown field {name[:64]!r}; the fields are {', '.join(names)}")
    for name in names:
        if name not in given:
            raise invalid(name, f"{name} is missing")
    return {name: text(name, given[name]) for name in names}


def _url(value: str) -> EndpointURL:
    if len(value) > MAX_URL_CHARS:
        raise invalid("url", f"url has {len(value)} characters; at most {MAX_URL_CHARS} are taken")
    try:
        return EndpointURL.parse(value)
    except ValueError as error:
        raise invalid("url", str(error)) from None
