"""Which jobs this orchestrator runs: all, or, where several share a store, its own and those of the dead."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from orchestrator.jobs import Job
from orchestrator.reference_memory import ReferenceMemory
from orchestrator.scheduler import Scheduler
from orchestrator.store import JobStore, StoreError

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_SECONDS = 10.0  # an orchestrator that has not been seen for so long is dead
ORPHAN_SECONDS = 2.0  # for roles to notice that an orchestrator is gone, before its jobs go on
FENCED_SECONDS = 6.0  # one that cannot say that it lives stops before the others take over


class NameTaken(Exception):
    """Another process has started under this orchestrator's name."""


class Ownership:
    """The owner's side of a job store. With a store that nobody else uses there is nothing to beat for."""

    def __init__(
        self,
        store: JobStore,
        name: str,
        life: str,
        jobs: dict[str, Job],
        scheduler: Scheduler,
        references: ReferenceMemory,
        changed: Callable[[str], None] = lambda job_id: None,
    ) -> None:
        """``jobs`` is what is known in memory, of all owners; ``changed`` hears which jobs others changed."""
        self.name = name
        self._store = store
        self._life = life
        self._jobs = jobs
        self._scheduler = scheduler
        self._references = references
        self._changed = changed
        self._since: float | None = None
        self._last_beat = time.monotonic()
        self._fenced = False

    async def start(self) -> int:
        """Loads all jobs and takes up those that are ours or nobody's; returns how many are unfinished."""
        if not await self._store.beat(self.name, self._life):
            raise NameTaken(f"another orchestrator is called {self.name}")
        for job in await self._store.load():
            self._jobs[job.id] = job
        # A store of our own has no other owner, whatever name an earlier life went by.
        taken = await self._store.take_over(self.name, SILENT_SECONDS if self._store.shared else 0.0)
        await self._take_all(taken)
        return len(taken)

    async def keep(self) -> None:
        """Beats and follows the others, for ever. Raises NameTaken."""
        if not self._store.shared:
            return
        while True:
            try:
                # Not longer: a database that does not answer must not keep us from stopping in time.
                await asyncio.wait_for(self._beat(), FENCED_SECONDS)
            except StoreError as error:
                self._failed(str(error))
            except asyncio.TimeoutError:
                self._failed(f"the job store did not answer within {FENCED_SECONDS:g} s")
            await asyncio.sleep(BEAT_SECONDS)

    async def close(self) -> None:
        try:
            await self._store.leave(self.name)
        except StoreError as error:
            log.warning("leaving: %s", error)

    async def _beat(self) -> None:
        now = time.monotonic()
        if not await self._store.beat(self.name, self._life):
            self._drop_all()
            raise NameTaken(f"another process has taken the name {self.name}: this one stops")
        self._last_beat = now
        self._fenced = False
        unsaved = [active for active in self._scheduler.active.values() if active.unsaved]
        for active in unsaved:
            active.unsaved = False  # what changes from here on is for the next time
        try:
            lost = await self._store.update_many([active.job for active in unsaved])
        except BaseException:
            for active in unsaved:
                active.unsaved = True
            raise
        for job_id in lost:
            log.warning("job=%s belongs to another orchestrator, or was deleted: left to it", job_id)
            self._scheduler.remove(job_id)
        taken = await self._store.take_over(self.name, SILENT_SECONDS, self._scheduler.active.keys())
        await self._take_all(taken)
        if taken:
            asyncio.get_running_loop().call_later(ORPHAN_SECONDS, self._scheduler.resume)
        await self._follow()

    async def _follow(self) -> None:
        """What the others have written since the last time."""
        changes = await self._store.changes(self._since)
        self._since = changes.now
        gone = set(changes.deleted_ids)
        if changes.complete:
            there = {job.id for job in changes.jobs}
            gone |= {job.id for job in self._jobs.values() if job.owner != self.name and job.id not in there}
        for job in changes.jobs:
            if job.owner != self.name:
                self._scheduler.remove(job.id)
                self._jobs[job.id] = job
                self._changed(job.id)
        for job_id in gone:
            self._scheduler.remove(job_id)
            self._jobs.pop(job_id, None)
            self._changed(job_id)

    async def _take_all(self, jobs: list[Job]) -> None:
        """With dispatching on hold, if there are any."""
        if not jobs:
            return
        images = await self._store.images([job.id for job in jobs])
        self._scheduler.hold()
        for job in jobs:
            self._take(job, images.get(job.id, ()))

    def _take(self, job: Job, images: Sequence[bytes]) -> None:
        known = self._jobs.get(job.id)
        if job.id in self._scheduler.active or (known and known.owner == self.name and known.status.final):
            return  # it began or finished while we asked
        for attempt in job.attempts:
            if attempt.outcome == "running":
                attempt.outcome, attempt.reason = "lost", "the orchestrator that ran it is gone"
        self._jobs[job.id] = job
        log.info("job=%s state=%s: taken up again", job.id, job.status.value)
        share = self._references.share()
        share.grow(sum(map(len, images)), forced=True)
        self._scheduler.add(job, images, share)

    def _failed(self, reason: str) -> None:
        log.warning("%s", reason)
        if not self._fenced and time.monotonic() - self._last_beat > FENCED_SECONDS:
            self._fenced = True
            log.error("the job store is out of reach: the jobs are left to other orchestrators")
            self._drop_all()

    def _drop_all(self) -> None:
        for job_id in list(self._scheduler.active):
            self._scheduler.remove(job_id)
