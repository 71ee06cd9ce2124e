"""Finished files that lie in a store outside of this host: read for clients, linked to, removed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from orchestrator.http.errors import ApiError
from transfer.remote_folder import NoSuchFile, RemoteError, RemoteFolder
from triptych_proto.control_pb2 import MediaFile

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_CHUNK_BYTES = 256 << 10  # a client waits for it
CHUNK_BYTES = 4 << 20  # of each stream one is read while another is sent
READ_SECONDS = 60.0  # for one chunk
LINK_SECONDS = 10.0
REMOVE_SECONDS = 10.0
RETRY_SECONDS = 30.0  # between two tries to remove something from a store that is away
MAX_TO_REMOVE = 100_000  # further ones are left to the sweep
THREADS = 16  # that wait for stores


class Outputs:
    """The stores this orchestrator was told of, and reads from: no role can name it another one."""

    def __init__(self, folders: Sequence[RemoteFolder] = (), redirect_seconds: float | None = None) -> None:
        """``redirect_seconds`` is how long links are good for; None: there are none."""
        self._folders = {folder.url: folder for folder in folders}
        self._redirect_seconds = redirect_seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="outputs")
        self._to_remove: dict[tuple[str, str], None] = {}  # store and name, oldest first
        self._away: dict[str, float] = {}  # store -> until when it is not asked to remove anything

    def refusal(self, file: MediaFile) -> str:
        """Why this file is none that a decoder may report here, or nothing."""
        if not file.store or file.store in self._folders:
            return ""
        known = ", ".join(self._folders) or "none"
        return (
            f"MediaFile.store is {file.store[:200]!r}, expected a store that this orchestrator was told of"
            f" with --output: {known}"
        )

    async def read(self, file: MediaFile, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """Raises ApiError: 404 when the file is gone, 503 when the store is away or unknown here."""
        folder = self._folder(file)
        reading: asyncio.Future[bytes] | None = None
        size = min(length, FIRST_CHUNK_BYTES)
        try:
            while length > 0 or reading is not None:
                ahead = None
                if length > 0:
                    ahead = self._call(folder.read, file.name, offset, size)
                    offset, length = offset + size, length - size
                    size = min(length, CHUNK_BYTES)
                if reading is not None:
                    try:
                        chunk = await self._answer(file, reading)
                    except BaseException:
                        if ahead is not None:
                            _forget(ahead)
                        raise
                    reading = ahead
                    yield chunk
                else:
                    reading = ahead
        finally:
            if reading is not None:
                _forget(reading)

    async def link(self, file: MediaFile, file_name: str) -> str | None:
        """Where clients may read it themselves; None if they may not, the store has no links or is away."""
        folder = self._folders.get(file.store)
        if self._redirect_seconds is None or folder is None:
            return None
        disposition = f'attachment; filename="{file_name}"'
        signing = self._call(folder.link, file.name, self._redirect_seconds, disposition)
        try:
            return await _within(LINK_SECONDS, signing)
        except (RemoteError, asyncio.TimeoutError) as error:
            log.warning("%s/%s is not linked to: %s", file.store, file.name, error)
            return None

    async def remove(self, file: MediaFile) -> None:
        """Removes it, now or when its store is back. Never raises."""
        if file.store not in self._folders:
            log.warning("%s/%s stays: this orchestrator was not told of the store", file.store, file.name)
        elif not await self._removed(file.store, file.name) and len(self._to_remove) < MAX_TO_REMOVE:
            self._to_remove[file.store, file.name] = None

    async def keep_removing(self) -> None:
        """What could not be removed so far, for ever."""
        while True:
            for store, name in list(self._to_remove):
                if await self._removed(store, name):
                    del self._to_remove[store, name]
            await asyncio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _removed(self, store: str, name: str) -> bool:
        if self._away.get(store, 0.0) > time.monotonic():
            return False
        try:
            await _within(REMOVE_SECONDS, self._call(self._folders[store].remove, name))
        except (RemoteError, asyncio.TimeoutError) as error:
            why = str(error) or f"no answer within {REMOVE_SECONDS:g} s"
            log.warning("%s/%s is to be removed later: %s", store, name, why)
            self._away[store] = time.monotonic() + RETRY_SECONDS / 2
            return False
        return True

    def _folder(self, file: MediaFile) -> RemoteFolder:
        folder = self._folders.get(file.store)
        if folder is None:
            message = f"the file is in {file.store}, which this server was not told of (--output)"
            raise ApiError(503, message, code="file_unavailable")
        return folder

    async def _answer(self, file: MediaFile, reading: asyncio.Future[bytes]) -> bytes:
        try:
            return await _within(READ_SECONDS, reading)
        except NoSuchFile:
            raise ApiError(404, f"the file is gone from {file.store}", code="content_gone") from None
        except (RemoteError, asyncio.TimeoutError) as error:
            why = str(error) or f"no answer within {READ_SECONDS:g} s"
            message = f"the file cannot be read from its store: {why}"
            retry = {"Retry-After": "5"}
            raise ApiError(503, message, code="file_unavailable", headers=retry) from error

    def _call(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args))


async def _within(seconds: float, call: asyncio.Future[T]) -> T:
    """Raises asyncio.TimeoutError. Up to Python 3.11 ``wait_for`` forgets that it was cancelled when the call
    has just ended, and whoever calls in a loop is never stopped.
    """
    try:
        done, _ = await asyncio.wait([call], timeout=seconds)
    except asyncio.CancelledError:
        _forget(call)
        raise
    if not done:
        _forget(call)
        raise asyncio.TimeoutError
    return call.result()


def _forget(call: asyncio.Future[Any]) -> None:
    """Nobody wants it any more, nor its error."""
    call.cancel()
    call.add_done_callback(lambda done: done.cancelled() or done.exception())
