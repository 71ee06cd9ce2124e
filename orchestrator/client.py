"""A client of the HTTP API: create, wait, download, and what operators do."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp

POLL_SECONDS = (0.05, 1.0)  # between two polls: at first, at most
RETRY_SECONDS = (0.2, 5.0)  # after a broken connection: at first, at most
REPLY_SECONDS = 30.0  # for any single reply but a download
CHUNK_BYTES = 1 << 20

T = TypeVar("T")
Video = dict[str, Any]


class ClientError(Exception):
    """What the server refused or failed to do; ``status`` is None if there was no reply."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def transient(self) -> bool:
        """The same request may succeed later."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


class VideoClient:
    """Talks to one server; used as ``async with VideoClient("http://127.0.0.1:30010") as client``.

    All methods raise ClientError. Videos are dicts, as the server sends them. ``token`` is an API key or,
    for operators, the cluster's token, where the server wants one. At most ``connections`` are open at once.
    """

    def __init__(self, server: str, token: str | None = None, *, connections: int = 100) -> None:
        self._base = server.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> VideoClient:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REPLY_SECONDS, sock_read=REPLY_SECONDS)
        self._session = aiohttp.ClientSession(
            timeout=timeout, headers=self._headers, connector=aiohttp.TCPConnector(limit=self._connections)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = (await self._json("GET", "/models"))["data"]
        return models

    async def create(self, *, images: Sequence[bytes] = (), **fields: Any) -> Video:
        """A new job from the fields of the API, with reference ``images`` (the bytes of their files). Never
        repeated: a lost reply does not mean a lost job.
        """
        if not images:
            return await self._json("POST", "/videos", json=fields)
        form = aiohttp.FormData({name: str(value) for name, value in fields.items()})
        name = "input_reference" if len(images) == 1 else "input_reference[]"
        for number, data in enumerate(images, 1):
            form.add_field(
                name, io.BytesIO(data), filename=f"{number}", content_type="application/octet-stream"
            )
        return await self._json("POST", "/videos", data=form)

    async def retrieve(self, video_id: str) -> Video:
        return await self._json("GET", f"/videos/{video_id}")

    async def timeline(self, video_id: str) -> dict[str, Any]:
        """Every attempt at every stage."""
        return await self._json("GET", f"/videos/{video_id}/timeline")

    async def delete(self, video_id: str) -> dict[str, Any]:
        return await self._json("DELETE", f"/videos/{video_id}")

    async def peers(self) -> dict[str, Any]:
        """The list of roles."""
        return await self._json("GET", "/peers")

    async def drain(self, url: str) -> dict[str, Any]:
        """The role at this endpoint URL is asked to take no new task."""
        return await self._json("POST", "/peers/drain", json={"url": url})

    async def wait(
        self,
        video_id: str,
        *,
        timeout: float,
        on_progress: Callable[[Video], None] = lambda video: None,
        poll: tuple[float, float] = POLL_SECONDS,
    ) -> Video:
        """The video when it is completed or failed; ``on_progress`` gets every state seen before too.
        ``poll``: seconds between two looks, at first and at most.

        A server that cannot be reached is asked again until ``timeout`` seconds are over.
        """
        deadline = time.monotonic() + timeout
        pause, longest = poll
        while True:
            video = await _persist(lambda: self.retrieve(video_id), deadline)
            on_progress(video)
            if video["status"] in ("completed", "failed"):
                return video
            if time.monotonic() + pause > deadline:
                raise ClientError(f"video {video_id} was not finished within {timeout:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)

    async def download(self, video_id: str, path: Path, *, timeout: float) -> None:
        """Writes the file as a whole or not at all; a broken download starts again until the timeout.

        Raises OSError if the file cannot be written.
        """
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            await _persist(lambda: self._fetch(video_id, part), time.monotonic() + timeout)
            await asyncio.to_thread(os.replace, part, path)
        finally:
            part.unlink(missing_ok=True)

    async def _fetch(self, video_id: str, part: Path) -> None:
        response = await self._request("GET", f"/videos/{video_id}/content")
        try:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise ClientError(f"the download of {video_id} broke off: {error!r}") from error
        finally:
            response.close()

    async def _json(
        self, method: str, path: str, json: Any = None, data: aiohttp.FormData | None = None
    ) -> dict[str, Any]:
        response = await self._request(method, path, json, data)
        try:
            body: dict[str, Any] = await response.json()
            return body
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise ClientError(f"{method} {self._base}{path}: broken reply: {error!r}") from error
        finally:
            response.release()

    async def _request(
        self, method: str, path: str, json: Any = None, data: aiohttp.FormData | None = None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("a VideoClient is used inside 'async with'")
        try:
            response = await self._session.request(method, f"{self._base}{path}", json=json, data=data)
            if response.ok:
                return response
            raise await _refusal(response)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ClientError(f"{self._base} is not of the form http(s)://host[:port]/v1") from error
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ClientError(f"cannot reach {self._base}: {reason}") from error


async def _refusal(response: aiohttp.ClientResponse) -> ClientError:
    try:
        error = (await response.json())["error"]
        return ClientError(str(error["message"]), response.status, error.get("code"))
    except (aiohttp.ContentTypeError, ValueError, LookupError, TypeError, AttributeError):
        return ClientError(f"{response.url} answered {response.status}", response.status)
    finally:
        response.release()


async def _persist(attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Tries again, ever more slowly, while errors are transient and the deadline is not reached."""
    pause, longest = RETRY_SECONDS
    while True:
        try:
            return await asyncio.wait_for(attempt(), max(deadline - time.monotonic(), 0.001))
        except asyncio.TimeoutError:
            raise ClientError("the server gave no answer in the time there was") from None
        except ClientError as error:
            if not error.transient or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)
