"""Thumbnails and contact sheets of finished files: made when first asked for, kept in a bounded folder."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job
from triptych_proto.control_pb2 import MediaFile

log = logging.getLogger(__name__)

MAX_WAITING = 32  # being made or waiting for it; one is made at a time
MAX_VIDEO_BYTES = 2 << 30  # of a video that is fetched from its decoder
FETCH_SECONDS = 120.0


@dataclass(frozen=True)
class Variant:
    """A kind of picture made of a video."""

    name: str
    content_type: str
    suffix: str


VARIANTS = {
    variant.name: variant
    for variant in (Variant("thumbnail", "image/webp", ".webp"), Variant("spritesheet", "image/jpeg", ".jpg"))
}


class Previews:
    """Pictures by job and variant. What is in the folder can be made again, so it may be emptied any time."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        content_path: Callable[[Job], Path | None],
        read_content: Callable[[Job, int, int], AsyncGenerator[bytes, None]],
    ) -> None:
        """The last two are where a finished job's video comes from, as in ``VideoService``. Raises ValueError
        for a negative ``max_bytes``.
        """
        if max_bytes < 0:
            raise ValueError(f"the previews' folder cannot have {max_bytes} bytes")
        self._folder = folder
        self._max_bytes = max_bytes
        self._content_path = content_path
        self._read_content = read_content
        self._making: dict[str, asyncio.Task[Path]] = {}  # by file name
        self._turn = asyncio.Semaphore(1)

    async def path(self, job: Job, variant: Variant) -> Path:
        """The picture's file. Raises ApiError: 422 for a video that cannot be read, 503 when too many are
        being made, the decoder is away or there is no room for the picture.
        """
        path = self._folder / f"{job.id}.{variant.name}{variant.suffix}"
        if await asyncio.to_thread(_use, path):
            return path
        task = self._making.get(path.name)
        if task is None:
            if len(self._making) >= MAX_WAITING:
                retry = {"Retry-After": "5"}
                raise ApiError(503, "too many previews are being made", code="busy", headers=retry)
            task = asyncio.create_task(self._make(job, variant, path))
            self._making[path.name] = task
            task.add_done_callback(lambda task: self._made(path.name, task))
        await asyncio.wait([task])  # one who leaves must not stop it for the others
        if task.cancelled():
            raise ApiError(503, "the server stops", code="unavailable")
        return task.result()

    async def discard(self, job_id: str) -> None:
        """Nothing of that job is there afterwards, nor comes."""
        for variant in VARIANTS.values():
            name = f"{job_id}.{variant.name}{variant.suffix}"
            self._making.pop(name, None)
            with suppress(OSError):
                await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)

    async def keep(self, job_ids: Collection[str]) -> None:
        """Removes all pictures but those of these jobs."""
        for name in await asyncio.to_thread(_names, self._folder):
            if name.partition(".")[0] not in job_ids:
                with suppress(OSError):
                    await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)

    async def close(self) -> None:
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _made(self, name: str, task: asyncio.Task[Path]) -> None:
        if self._making.get(name) is task:
            del self._making[name]
        if not task.cancelled() and task.exception() is not None:  # also where nobody waits for it any more
            log.info("%s is not made: %s", name, task.exception())

    async def _make(self, job: Job, variant: Variant, path: Path) -> Path:
        assert job.file is not None
        try:
            async with self._turn:
                await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
                found = await asyncio.to_thread(self._content_path, job)
                source = found or await self._fetch(job, job.file.bytes)
                picture = await asyncio.to_thread(_render, source, job.file, variant.name)
                if self._making.get(path.name) is not asyncio.current_task():
                    raise ApiError(404, f"video {job.id} was deleted", code="video_not_found", param="id")
                await asyncio.to_thread(_write, path, picture, self._max_bytes)
        except ValueError as error:
            message = f"no {variant.name} can be made of video {job.id}: {error}"
            raise ApiError(422, message, code="no_preview") from error
        except OSError as error:
            message = f"the {variant.name} of {job.id} cannot be made now: {error.strerror or error}"
            raise ApiError(503, message, code="no_preview") from error
        return path

    async def _fetch(self, job: Job, size: int) -> IO[bytes]:
        """The video in a file without a name, which vanishes when it is closed."""
        if size > MAX_VIDEO_BYTES:
            raise ValueError(f"its {size} bytes are more than {MAX_VIDEO_BYTES}")
        file: IO[bytes] = await asyncio.to_thread(_nameless, self._folder)
        try:
            await asyncio.wait_for(self._copy(job, size, file), FETCH_SECONDS)
        except asyncio.TimeoutError:
            file.close()
            raise TimeoutError(f"its decoder did not send it within {FETCH_SECONDS:.0f} s") from None
        except BaseException:
            file.close()
            raise
        return file

    async def _copy(self, job: Job, size: int, file: IO[bytes]) -> None:
        async with aclosing(self._read_content(job, 0, size)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(file.seek, 0)


def _render(source: Path | IO[bytes], media: MediaFile, variant: str) -> bytes:
    # Imported by the first one who wants a picture: it takes tens of megabytes.
    from orchestrator import pictures

    if isinstance(source, Path):
        with source.open("rb") as file:
            return pictures.render(file, media.content_type, variant, media.num_frames)
    with source:
        return pictures.render(source, media.content_type, variant, media.num_frames)


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _use(path: Path) -> bool:
    """Whether it is there; then it is among the last to go. When it was written stays, for validators."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except OSError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _write(path: Path, picture: bytes, max_bytes: int) -> None:
    """Makes room for it among the others, those unused for longest going first."""
    others = []
    for name in _names(path.parent):
        with suppress(OSError):
            status = (path.parent / name).stat()
            others.append((status.st_atime, status.st_size, path.parent / name))
    total = len(picture) + sum(size for _, size, _ in others)
    for _, size, other in sorted(others):
        if total <= max_bytes:
            break
        other.unlink(missing_ok=True)
        total -= size
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(picture)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
