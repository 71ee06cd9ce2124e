"""Who may use the API: those with an API key, if there are keys. Who may change the cluster: those who know
its token or, where none is set, this host.
"""

from __future__ import annotations

import hmac
import ipaddress

from aiohttp import web

from orchestrator.http.errors import ApiError, Handler
from orchestrator.http.service import OPTIONS

CONTENT = "/v1/videos/{id}/content"
OPERATOR = "operator"  # the name of who shows the cluster's token in place of a key

# Asked by probes and scrapers, which have no key; and what the API is like, which is no secret.
_OPEN = {("GET", path) for path in ("/health", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs")}
_OPERATORS = {("POST", "/v1/peers"), ("POST", "/v1/peers/drain")}  # their handlers call require_operator

# A request with one of these comes from a proxy or from a web page, whatever its connection comes from.
_RELAYED = ("Origin", "Forwarded", "X-Forwarded-For")

_CALLER = web.RequestKey("caller", str)


@web.middleware
async def auth_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Without keys, everybody may use the API. Raises ApiError: 401; for signed URLs also 403."""
    if request.app[OPTIONS].api_keys is not None:
        resource = request.match_info.route.resource
        method = "GET" if request.method == "HEAD" else request.method
        route = (method, resource.canonical if resource is not None else "")
        if route not in _OPEN | _OPERATORS and not _signed(request, route):
            request[_CALLER] = _authenticate(request)
    return await handler(request)


def caller(request: web.Request) -> str | None:
    """The name of the key that the request shows, if one was asked for."""
    return request.get(_CALLER)


def require_operator(request: web.Request) -> None:
    """Raises ApiError: 401 without the right token, 403 if there is none and the client is elsewhere."""
    if request.app[OPTIONS].cluster_token is None:
        if not _from_this_host(request):
            message = "only this host may do that; start the orchestrator with --cluster-token-file"
            raise ApiError(403, message, code="operators_only")
        return
    if not _is_operator(request):
        message = "this needs the cluster's token: Authorization: Bearer TOKEN"
        raise _unauthorized(message, "invalid_token")


def _authenticate(request: web.Request) -> str:
    keys = request.app[OPTIONS].api_keys
    if "Authorization" not in request.headers:
        raise _unauthorized("this needs an API key: Authorization: Bearer KEY", "invalid_api_key")
    name = keys.name_of(_bearer(request)) if keys is not None else None
    if name is None and _is_operator(request):
        name = OPERATOR
    if name is None:
        raise _unauthorized("this API key is not known here", "invalid_api_key")
    return name


def _signed(request: web.Request, route: tuple[str, str]) -> bool:
    """A link that was handed out, and is good for what it is used for. Raises ApiError: 401, 403."""
    signer = request.app[OPTIONS].signer
    if signer is None or route != ("GET", CONTENT) or "signature" not in request.query:
        return False
    signer.check(request.query, request.match_info["id"], request.query.get("variant", "video"))
    return True


def _is_operator(request: web.Request) -> bool:
    token = request.app[OPTIONS].cluster_token
    given = _bearer(request).encode("utf-8", "surrogateescape")
    return token is not None and hmac.compare_digest(given, token.encode())


def _bearer(request: web.Request) -> str:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _from_this_host(request: web.Request) -> bool:
    if any(name in request.headers for name in _RELAYED):
        return False
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
