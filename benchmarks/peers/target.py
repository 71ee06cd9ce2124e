"""A server under measurement as its clients see it: one POST, answered when the three stages are through."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any, Protocol

REQUEST_SECONDS = 90.0
JSON = {"Content-Type": "application/json"}


class RequestError(Exception):
    """A request that got another answer than it should have, or none."""


@dataclass(frozen=True)
class Reply:
    """What the answer says of itself: which process denoised (peers), or which video it is (Triptych)."""

    denoiser: int | None = None
    video_id: str | None = None


class Target(Protocol):
    """Thread-safe."""

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int: ...

    def request(self, connection: http.client.HTTPConnection, number: int) -> Reply:
        """Raises RequestError; the connection can be used again all the same."""
        ...


def open_connection(target: Target) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", target.port, timeout=REQUEST_SECONDS)


def post(
    connection: http.client.HTTPConnection, path: str, fields: dict[str, Any]
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer and its whole body. Raises RequestError unless it is 200."""
    try:
        connection.request("POST", path, json.dumps(fields), JSON)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()  # opens again with the next request
        raise RequestError(f"no answer: {error!r}") from error
    if response.status != 200:
        raise RequestError(f"answered {response.status}: {body[:200]!r}")
    return response, body
