"""Errors as OpenAI's clients expect them: one JSON shape and a request id on every reply."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = web.RequestKey("request_id", str)
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


class ApiError(Exception):
    """An error reply.

    ``param`` names the field at fault, ``code`` is for programs. ``type`` follows from the status unless
    given: ``invalid_request_error`` below 500, ``rate_limit_error`` for 429, else ``server_error``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type or _type(status)
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return web.json_response({"error": error}, status=self.status, headers=self.headers)


def invalid(param: str | None, message: str) -> ApiError:
    """A 400: the request's own fault."""
    return ApiError(400, message, code="invalid_value", param=param)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever goes wrong further in into an error reply. Must be the outermost middleware."""
    request_id = request.headers.get("x-request-id", "")
    if not _SANE_ID.fullmatch(request_id):
        request_id = new_request_id()
    request[_REQUEST_ID] = request_id
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except web.HTTPException as error:
        return from_aiohttp(request, error).response()
    except ConnectionError:
        raise  # the client has left: there is no one to answer
    except Exception:
        log.exception("request %s: %s %s failed", request_id, request.method, request.path)
        # OpenAI's SDKs repeat a request after a 5xx: this may come after its work was done.
        return ApiError(
            500,
            f"internal error; the server's log has the details under request id {request_id}",
            code="internal_error",
            headers={"x-should-retry": "false"},
        ).response()


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def request_id(request: web.Request) -> str:
    """The request's own id, or the one it was given."""
    return request[_REQUEST_ID]


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """An ``on_response_prepare`` signal: it also reaches replies that are streamed."""
    request_id = request.get(_REQUEST_ID)
    if request_id is not None:  # a request that is refused before any middleware has none here
        response.headers["x-request-id"] = request_id


def from_aiohttp(request: web.BaseRequest, error: web.HTTPException) -> ApiError:
    """The same as an error of ours."""
    headers: dict[str, str] = {}
    code: str | None = None
    message = error.text or error.reason
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        code, message = "method_not_allowed", f"{request.path} does not answer {request.method}"
    elif isinstance(error, web.HTTPNotFound):
        code, message = "not_found", f"there is nothing at {request.path}"
    elif isinstance(error, web.HTTPRequestEntityTooLarge):
        code = "body_too_large"
    elif isinstance(error, web.HTTPExpectationFailed):
        code = "unknown_expectation"
    elif "Location" in error.headers:
        headers["Location"] = error.headers["Location"]
    return ApiError(error.status, message, code=code, headers=headers)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
