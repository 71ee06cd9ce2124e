"""Sends a finished file, or the range of it that is asked for: from the disk, or as it is read elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from orchestrator.http.connections import cut_off
from orchestrator.http.errors import ApiError

T = TypeVar("T")

log = logging.getLogger(__name__)

SMALL_BYTES = 64 << 10  # of a file that is sent from memory
_CONDITIONS = ("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")


@dataclass(frozen=True)
class LocalFile:
    """A finished file on a disk that is seen here."""

    path: Path
    status: os.stat_result
    data: bytes | None  # of a small one: to open it for sending, and to close it, takes a thread each

    @staticmethod
    def look(path: Path) -> LocalFile:
        """Not on the event loop. Raises OSError if the file is not there."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return LocalFile(path, status, file.read() if status.st_size <= SMALL_BYTES else None)

    async def send(
        self, request: web.Request, headers: Mapping[str, str], timeout: float
    ) -> web.StreamResponse:
        """``timeout`` is in seconds, for all of it. Raises ApiError: 416."""
        etag = f'"{self.status.st_mtime_ns:x}-{self.status.st_size:x}"'  # the one that aiohttp gives it
        if self.data is not None and not any(name in request.headers for name in _CONDITIONS):
            tagged = {**headers, "Accept-Ranges": "bytes", "ETag": etag}
            response = web.Response(body=self.data, headers=tagged)
            response.last_modified = self.status.st_mtime
            return response
        asked = _asked(request, etag)
        since = asked.if_range
        if since is None or self.status.st_mtime <= since.timestamp():  # as aiohttp sees it
            _range(asked, self.status.st_size)  # aiohttp would answer 416 without a body
        return _FileResponse(self.path, headers, timeout, asked)


class _FileResponse(web.FileResponse):
    """A FileResponse to what is ``asked``, whose client cannot stop reading for ever."""

    def __init__(self, path: Path, headers: Mapping[str, str], timeout: float, asked: web.Request) -> None:
        super().__init__(path, headers=headers)
        self._timeout = timeout
        self._asked = asked

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return await _send(request, super().prepare(self._asked), self._timeout)


@dataclass(frozen=True)
class RemoteFile:
    """A file that never changes, read from elsewhere as it is sent."""

    size: int  # bytes
    etag: str
    read: Callable[[int, int], AsyncGenerator[bytes, None]]  # offset and length; may raise ApiError first

    async def send(
        self, request: web.Request, headers: Mapping[str, str], timeout: float
    ) -> web.StreamResponse:
        """Raises ApiError: 416 for a range outside, and what ``read`` raises before its first bytes."""
        tagged = {**headers, "Accept-Ranges": "bytes", "ETag": f'"{self.etag}"'}
        asked = _asked(request, tagged["ETag"])
        if any(tag.value in (self.etag, "*") for tag in asked.if_none_match or ()):
            return web.Response(status=304, headers=tagged)
        dated = "If-Range" in asked.headers  # and the file has no date
        offset, length, status = (0, self.size, 200) if dated else _range(asked, self.size)
        if status == 206:
            tagged["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{self.size}"
        response = web.StreamResponse(status=status, headers=tagged)
        response.content_length = length
        if request.method == "HEAD":
            return response
        async with aclosing(self.read(offset, length)) as chunks:
            first = await anext(chunks, b"")  # before the headers, so that a failure can still be answered
            with suppress(ConnectionError):  # aiohttp sees for itself that the connection is gone
                await _send(request, _stream(request, response, first, chunks), timeout)
        return response


async def _stream(
    request: web.Request, response: web.StreamResponse, first: bytes, rest: AsyncGenerator[bytes, None]
) -> None:
    await response.prepare(request)
    await response.write(first)
    async for chunk in rest:
        await response.write(chunk)
    await response.write_eof()


async def _send(request: web.BaseRequest, sending: Awaitable[T], timeout: float) -> T:
    """Once headers are out, only a cut connection can tell the client that something went wrong."""
    try:
        return await asyncio.wait_for(sending, timeout)
    except ConnectionError:
        raise
    except Exception as error:
        log.warning("sending %s broke off: %r", request.path, error)
        cut_off(request.transport)
        raise ConnectionResetError(f"sending {request.path} broke off") from error


def _asked(request: web.Request, etag: str) -> web.Request:
    """The request without ranges and conditions that do not count: those of another method than GET and HEAD,
    and a range of a file with another ETag, which aiohttp does not look at.
    """
    headers = request.headers.copy()
    if request.method not in ("GET", "HEAD"):
        for name in _CONDITIONS:
            headers.popall(name, None)
    elif request.if_range is None and headers.pop("If-Range", etag) != etag:  # None: it is no date
        headers.popall("Range", None)
    return request.clone(headers=headers)


def _range(request: web.Request, size: int) -> tuple[int, int, int]:
    """Offset, length and status (200 or 206) of the one range that is asked for. Raises ApiError: 416."""
    if "Range" not in request.headers:
        return 0, size, 200
    try:
        wanted = request.http_range
    except ValueError:
        raise _unsatisfiable(size) from None
    start, stop, _ = wanted.indices(size)
    if start >= stop:
        raise _unsatisfiable(size)
    return start, stop - start, 206


def _unsatisfiable(size: int) -> ApiError:
    headers = {"Content-Range": f"bytes */{size}"}
    message = f"the range is not within the {size} bytes of the file"
    return ApiError(416, message, code="range_not_satisfiable", headers=headers)
