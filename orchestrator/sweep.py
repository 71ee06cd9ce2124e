"""Removes media files that belong to no job: their decoder, or the store, went away at the wrong moment."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypeVar

from orchestrator.jobs import JOB_ID, Job
from orchestrator.places import MARKER, Place
from orchestrator.store import JobStore, StoreError
from transfer.remote_folder import RemoteError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_INTERVAL_SECONDS = 3600.0  # between two sweeps of a place
BATCH = 500  # jobs looked up at once
# What decoders write: the job's id, the task's, a suffix; and what lies beside it in the making.
_NAME = re.compile(rf"(({JOB_ID.pattern})-[A-Za-z0-9_-]{{1,200}}\.[a-z0-9]{{2,5}})(?:\.part|\.claim)?")


@dataclass
class _File:
    """A media file and what lies beside it."""

    job_id: str
    entries: list[str] = field(default_factory=list)
    modified: float = 0.0  # of the latest


class Sweep:
    """A file is an orphan when the job store knows no such job, or when the job is over and has another
    file. Neither can change any more: a job is stored before it runs, and its end is final. So several
    orchestrators on one job store may sweep at once.

    A job store knows nothing of another one's jobs. So a place belongs to the job store whose identity its
    marker holds, and is not swept for any other one.
    """

    def __init__(
        self, places: Sequence[Place], store: JobStore, jobs: Mapping[str, Job], orphan_seconds: float
    ) -> None:
        """``jobs`` are those in memory, where most of what is there is found."""
        self._places = places
        self._store = store
        self._jobs = jobs
        self._orphan_seconds = orphan_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        self._told: dict[Place, str] = {}  # why it is not swept

    async def run(self) -> None:
        """For ever."""
        while True:
            for place in self._places:
                await self.sweep(place)
            await asyncio.sleep(min(max(self._orphan_seconds / 4, 1.0), MAX_INTERVAL_SECONDS))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def sweep(self, place: Place) -> int:
        """Returns how many files were removed. Never raises."""
        removed = 0
        try:
            files = await self._call(lambda: _files(place))
            if problem := await self._not_ours(place, files):
                self._tell(place, problem)
                return 0
            before = time.time() - self._orphan_seconds
            suspects = iter([name for name, file in files.items() if file.modified < before])
            while batch := list(islice(suspects, BATCH)):
                orphans = await self._orphans(place, {name: files[name] for name in batch})
                for name, file in orphans.items():
                    if await self._call(partial(place.remove, name, file.entries)):
                        log.info("%s: %s belongs to no job, removed", place, name)
                        removed += 1
            self._told.pop(place, None)
        except (OSError, RemoteError, StoreError) as error:
            self._tell(place, str(error))
        return removed

    async def _not_ours(self, place: Place, files: Mapping[str, _File]) -> str:
        """Why it is not ours to sweep, or nothing. What has no owner, and nothing of strangers, is ours."""
        identity = await self._store.identity()
        owner = await self._call(place.owner)
        if not owner:
            strange = await self._unknown(files)
            if strange:
                return (
                    f"of {len(strange)} requests it has files that the job store does not know. If no other"
                    f" one does, put {identity} into {MARKER} there"
                )
            await self._call(lambda: place.claim(identity))
            owner = await self._call(place.owner)
        return "" if owner == identity else f"by {MARKER} there it belongs to another job store"

    async def _unknown(self, files: Mapping[str, _File]) -> set[str]:
        unknown = {file.job_id for file in files.values()} - self._jobs.keys()
        for batch in _batches(sorted(unknown)):
            unknown -= {job.id for job in await self._store.get_many(batch)}
        return unknown

    async def _orphans(self, place: Place, files: Mapping[str, _File]) -> dict[str, _File]:
        # A wanted file needs no database: if memory is behind, it stays for the next time.
        left = {
            name: file
            for name, file in files.items()
            if file.job_id not in self._jobs or not _wants(self._jobs[file.job_id], place, name)
        }
        ids = sorted({file.job_id for file in left.values()})
        stored = {job.id: job for job in await self._store.get_many(ids)} if ids else {}
        return {
            name: file
            for name, file in left.items()
            if file.job_id not in stored or not _wants(stored[file.job_id], place, name)
        }

    def _tell(self, place: Place, problem: str) -> None:
        if self._told.get(place) != problem:
            log.warning("%s is not swept of files without a job: %s", place, problem)
            self._told[place] = problem

    def _call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function)


def _files(place: Place) -> dict[str, _File]:
    """By name, those with names of our own that have one age at least."""
    files: dict[str, _File] = {}
    for entry in place.entries():
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            file = files.setdefault(match[1], _File(match[2]))
            file.entries.append(entry.name)
            # Of what has no age nobody knows whether it is old.
            file.modified = max(file.modified, float("inf") if entry.modified is None else entry.modified)
    return files


def _wants(job: Job, place: Place, name: str) -> bool:
    if not job.status.final:
        return True
    return job.file is not None and (job.file.store, job.file.name) == (place.store, name)


def _batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
