"""Copies of media files whose decoders have a disk that does not last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import IO

import grpc

from orchestrator import call_errors
from triptych_proto import control_pb2 as pb

log = logging.getLogger(__name__)

MAX_AT_ONCE = 4  # files that are copied; further ones wait
ATTEMPTS = 3  # of one file
RETRY_SECONDS = 0.5
STALL_SECONDS = 30.0  # for the next bytes of a file
FORGOTTEN_SECONDS = 3600.0  # after which a file is nobody's if no job says that it is its own


class CopyBroken(Exception):
    """The bytes did not all come."""


class Copies:
    """A folder of the orchestrator's own. A file in it is whole, and on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    def path(self, file: pb.MediaFile) -> Path:
        """Where its copy lies, if there is one."""
        return self._folder / Path(file.name).name

    async def take(
        self,
        read: Callable[[str, int, int], AsyncGenerator[bytes, None]],
        done: pb.Done,
        wanted: Callable[[], bool],
    ) -> pb.Failed | None:
        """Copies the file that ``done`` reports, as long as it is ``wanted``; returns what went wrong.

        ``read`` gives the bytes of a file, from an offset on, and raises AioRpcError.
        """
        why, code = "", pb.Failed.INTERNAL
        for attempt in range(ATTEMPTS):
            if attempt:
                log.warning("task=%s: its file is copied again: %s", done.task_id, why)
                await asyncio.sleep(RETRY_SECONDS)
            try:
                async with self._turns:
                    await self._make(read(done.file.name, 0, done.file.bytes), done.file, wanted)
                return None
            except grpc.aio.AioRpcError as error:
                why = call_errors.reason(error)
            except CopyBroken as error:
                why = str(error)
            except OSError as error:
                why, code = str(error), pb.Failed.OUTPUT_STORE
                break
            if not wanted():
                break
        return pb.Failed(task_id=done.task_id, reason=code, message=f"copying {done.file.name}: {why}")

    async def _make(
        self, source: AsyncGenerator[bytes, None], file: pb.MediaFile, wanted: Callable[[], bool]
    ) -> None:
        """Leaves nothing when it raises."""
        part = await asyncio.to_thread(self._open_part, file)
        try:
            with part:
                async with contextlib.aclosing(source):
                    await _copy(source, part, file, wanted)
                await asyncio.to_thread(_publish, part, self.path(file))
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise

    async def discard(self, file: pb.MediaFile) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.path(file).unlink, missing_ok=True)

    async def tidy(self, wanted: Callable[[str], bool]) -> None:
        """Removes old files that are not ``wanted``, by name: a crash leaves those of which no job knows."""
        for path in await asyncio.to_thread(self._forgotten):
            if not wanted(path.name):
                log.info("%s: no job knows of it, removed", path)
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(path.unlink, missing_ok=True)

    def _open_part(self, file: pb.MediaFile) -> IO[bytes]:
        """Of a name of its own: what a lost stream has begun may still be going on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self.path(file).with_suffix(f".{secrets.token_hex(8)}.part").open("xb")

    def _forgotten(self) -> list[Path]:
        """Young ones may be another orchestrator's, which has not told of its job yet."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > FORGOTTEN_SECONDS:
                        found.append(Path(entry.path))
        return found


async def _copy(
    source: AsyncGenerator[bytes, None], part: IO[bytes], file: pb.MediaFile, wanted: Callable[[], bool]
) -> None:
    left = file.bytes
    while left > 0:
        if not wanted():
            raise CopyBroken("nobody wants it any more")
        try:
            data = await asyncio.wait_for(anext(source, b""), STALL_SECONDS)
        except asyncio.TimeoutError:
            raise CopyBroken(f"nothing came for {STALL_SECONDS:.0f} s, {left} bytes are missing") from None
        if not data:
            raise CopyBroken(f"it ended {left} bytes too early")
        await asyncio.to_thread(part.write, data)
        left -= len(data)


def _publish(part: IO[bytes], path: Path) -> None:
    part.flush()
    os.fsync(part.fileno())
    os.replace(part.name, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
