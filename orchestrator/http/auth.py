"""Who may change the cluster over HTTP: those who know its token or, where none is set, this host."""

from __future__ import annotations

import hmac
import ipaddress

from aiohttp import web

from orchestrator.http.errors import ApiError
from orchestrator.http.service import OPTIONS

# A request with one of these comes from a proxy or from a web page, whatever its connection comes from.
_RELAYED = ("Origin", "Forwarded", "X-Forwarded-For")


def require_operator(request: web.Request) -> None:
    """Raises ApiError: 401 without the right token, 403 if there is none and the client is elsewhere."""
    token = request.app[OPTIONS].cluster_token
    if token is None:
        if not _from_this_host(request):
            message = "only this host may do that; start the orchestrator with --cluster-token-file"
            raise ApiError(403, message, code="operators_only")
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    if scheme.lower() != "bearer" or not same:
        message = "this needs the cluster's token: Authorization: Bearer TOKEN"
        raise ApiError(401, message, code="invalid_token", headers={"WWW-Authenticate": "Bearer"})


def _from_this_host(request: web.Request) -> bool:
    if any(name in request.headers for name in _RELAYED):
        return False
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
