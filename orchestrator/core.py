"""The orchestrator as its HTTP handlers see it: ties job store, peers and scheduler together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from orchestrator.background import Background
from orchestrator.catalog import Catalog
from orchestrator.credentials import Credentials
from orchestrator.finished_files import FinishedFiles
from orchestrator.graph import GENERATION
from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job, Once
from orchestrator.lag import LoopLag
from orchestrator.life import Life
from orchestrator.membership import Membership, NamedPeers
from orchestrator.metrics import Metrics
from orchestrator.outputs import Outputs
from orchestrator.ownership import NameTaken, Ownership
from orchestrator.peers import Peer, Peers
from orchestrator.places import LocalPlace, Place, RemotePlace
from orchestrator.reference_memory import ReferenceMemory
from orchestrator.scheduler import Fate, Scheduler, SchedulerOptions, result_task
from orchestrator.state_metrics import StateCollector
from orchestrator.store import JobStore, StoreError
from orchestrator.sweep import Sweep
from orchestrator.validation import ContractBroken
from orchestrator.watchers import Watchers
from orchestrator.webhooks import WebhookOptions, Webhooks
from transfer.remote_folder import RemoteFolder
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0  # for roles to say what they still run, before unfinished jobs go on
ANNOUNCE_SECONDS = 2.0  # of that, for roles which announce themselves
SAVE_RETRY_SECONDS = 1.0
FOLLOW_SECONDS = 1.0  # between two looks at whether a job of another orchestrator is over
SWEEP_SECONDS = 60.0  # between two looks for jobs that are kept no longer
SWEEP_JOBS = 500
ORPHAN_SECONDS = 30.0
MAX_RETRY_AFTER = 60


@dataclass(frozen=True)
class CoreOptions:
    peers: tuple[tuple[EndpointURL, str], ...]  # endpoint and the kind of role expected there
    database_url: str
    output_dir: Path  # where decoders on this host, or on a shared disk, write
    data_dir: Path | None = None  # for copies and thumbnails; None: the folder that output_dir is in
    remote_outputs: tuple[RemoteFolder, ...] = ()  # where decoders write otherwise
    redirect_seconds: float | None = None  # clients get links to these that are good for so long; None: none
    orphan_seconds: float | None = None  # files of no job are removed when they are so old; None: never
    name: str = "orchestrator"  # by which others that share the database know this one, over restarts
    named_peers: tuple[tuple[NamedPeers, str], ...] = ()
    max_queue: int = 1000  # jobs accepted and not over
    max_reference_bytes: int = 1 << 30  # of reference images in memory, of those jobs and of bodies
    preview_bytes: int = 256 << 20  # of thumbnails and the like that are kept
    retention_seconds: float | None = None  # finished jobs and their files are kept so long; None: for ever
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    credentials: Credentials = field(default_factory=Credentials)
    webhooks: WebhookOptions | None = None  # None: none are sent


class Orchestrator:
    """Implements ``orchestrator.http.service.VideoService``."""

    def __init__(self, options: CoreOptions) -> None:
        self._options = options
        self._store = JobStore(options.database_url)
        self._jobs: dict[str, Job] = {}  # oldest first
        self._catalog = Catalog()
        self._metrics = Metrics()
        self.registry = self._metrics.registry
        self.peers = Peers()
        self.membership = Membership(self.peers, self._dial, options.peers, options.named_peers)
        life = secrets.token_hex(4)
        self._watchers = Watchers()
        self.references = ReferenceMemory(options.max_reference_bytes)
        self.scheduler = Scheduler(
            life,
            self.peers.lives,
            self._finished,
            self._fate,
            self._metrics,
            options.scheduler,
            changed=lambda job: self._watchers.notify(job.id),
        )
        self.ownership = Ownership(
            self._store,
            options.name,
            life,
            self._jobs,
            self.scheduler,
            self.references,
            self._watchers.notify,
        )
        self.registry.register(StateCollector(self.scheduler, self.peers))
        self._lag = LoopLag(self.registry)
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finish_times: deque[float] = deque(maxlen=32)  # monotonic
        self._unrecorded: set[str] = set()  # finished, and not yet written so
        self._background = Background()
        self._webhooks = None if options.webhooks is None else Webhooks(options.webhooks, self._told)
        self.outputs = Outputs(options.remote_outputs, options.redirect_seconds)
        self.files = FinishedFiles(
            options.output_dir,
            options.data_dir or options.output_dir.parent,
            self.outputs,
            self.peers,
            options.preview_bytes,
            options.max_queue,
        )
        self.previews = self.files.previews
        self._sweep_orphans = None
        if options.orphan_seconds is not None:
            places: list[Place] = [LocalPlace(options.output_dir), *map(RemotePlace, options.remote_outputs)]
            self._sweep_orphans = Sweep(places, self._store, self._jobs, options.orphan_seconds)

    @property
    def retention_seconds(self) -> float | None:
        return self._options.retention_seconds

    async def start(self) -> None:
        """Reads the store, dials the roles, takes up what was not finished."""
        await self._store.open()
        unfinished = await self.ownership.start()
        self.membership.start()
        for job in list(self._jobs.values()):
            if job.status.final and (job.owner == self._options.name or not self._store.shared):
                self._tell(job)  # an earlier life has not got through
        if unfinished:
            self._background.spawn(self._go_on())
        self._background.spawn(self._lag.run())
        self._background.spawn(self._keep_ownership())
        self._background.spawn(self._expire())
        self._background.spawn(self._tidy())
        self._background.spawn(self.outputs.keep_removing())
        if self._sweep_orphans is not None:
            self._background.spawn(self._sweep_orphans.run())
        if self._store.shared:
            self._background.spawn(self._review_orphans())
        if self._options.retention_seconds is not None:
            self._background.spawn(self._sweep(self._options.retention_seconds))

    async def close(self) -> None:
        self.scheduler.stop()  # roles go on with what they have, for the next life to adopt
        await self.membership.close()
        await self._background.finish("save", SAVE_RETRY_SECONDS)  # finished jobs are worth a moment
        await self._background.close()
        if self._webhooks is not None:
            await self._webhooks.close()
        await self.files.close()
        if self._sweep_orphans is not None:
            self._sweep_orphans.close()
        await self.ownership.close()
        await self._store.close()

    # ---- for the HTTP handlers

    def models(self) -> Sequence[pb.Model]:
        return self._catalog.models()

    async def submit(
        self,
        model: str,
        generation: pb.Generation,
        *,
        priority: int = 0,
        timeout: float | None = None,
        remixed_from: str | None = None,
        webhook_url: str | None = None,
        once: Once | None = None,
        images: Sequence[bytes] = (),
    ) -> Job:
        """Stores the job, then gives it to the scheduler. Of requests with equal ``once.key`` the first one
        does, and all others get its job.

        ApiError 429 when the queue or the memory for reference images is full, 503 when a role was not there
        for so long that waiting is vain.
        """
        retry = {"Retry-After": str(self._retry_after())}
        if len(self.scheduler.active) >= self._options.max_queue:
            message = f"{self._options.max_queue} requests are waiting already"
            raise ApiError(429, message, code="queue_full", type="rate_limit_error", headers=retry)
        role = self.scheduler.hopeless(model)
        if role:
            message = f"there has been no {role} for {model} for a long time"
            raise ApiError(503, message, code="no_instance", headers=retry)
        longest = self._options.scheduler.job_seconds
        job = Job.new(model, generation, priority, min(timeout or longest, longest))
        job.owner = self.ownership.name
        job.remixed_from = remixed_from
        job.webhook_url = webhook_url
        if once is not None:
            job.idempotency_key, job.request_hash = once.key, once.request
        with self.references.share() as share:
            share.grow(sum(map(len, images)))
            stored = await self._store.add(job, images)
            if stored is not job:
                return self._jobs.get(stored.id, stored)
            self._jobs[job.id] = job
            log.info("job=%s state=queued model=%s priority=%d", job.id, job.model, job.priority)
            self.scheduler.add(job, images, share.handed_on())
        return job

    async def images(self, job_id: str) -> tuple[bytes, ...]:
        return (await self._store.images([job_id])).get(job_id, ())

    async def submitted(self, key: str) -> Job | None:
        job = await self._store.find_by_key(key)
        return None if job is None else self._jobs.get(job.id, job)

    async def finished(self, job_id: str) -> Job | None:
        with self.watch(job_id) as changed:
            while (job := await self.find(job_id)) is not None and not job.status.final:
                if self._store.shared:  # it may be another orchestrator's, of whose steps nobody tells us
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(changed.wait(), FOLLOW_SECONDS)
                else:
                    await changed.wait()
                changed.clear()
        return job

    def watch(self, job_id: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        return self._watchers.watch(job_id)

    async def find(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None and self._store.shared:
            job = await self._store.get(job_id)  # another orchestrator has taken it a moment ago
            if job is not None:
                job = self._jobs.setdefault(job_id, job)
        return job

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        if after is not None and after not in self._jobs:
            raise KeyError(after)
        ids: Iterator[str] = reversed(self._jobs) if newest_first else iter(self._jobs)
        if after is not None:
            next(job_id for job_id in ids if job_id == after)
        jobs = [self._jobs[job_id] for job_id in islice(ids, limit)]
        return jobs, next(ids, None) is not None

    async def delete(self, job_id: str) -> bool:
        """Stops the job if it runs, and removes its row and its file."""
        job = await self.find(job_id)
        if job is None:
            return False
        self._jobs.pop(job_id, None)
        job.webhook_url = None
        self.scheduler.remove(job_id)
        await self.files.delete(job)  # first: after a crash between the two the client can ask again
        await self._store.delete([job_id])
        self._watchers.notify(job_id)
        log.info("job=%s state=deleted", job_id)
        return True

    def peer_entries(self) -> Sequence[dict[str, object]]:
        return [self._peer_entry(peer) for peer in self.peers.values()]

    async def announce(self, url: EndpointURL, role: str) -> str:
        return self.membership.announce(url, role)

    def drain(self, url: EndpointURL) -> bool:
        peer = self.peers.get(url)
        if peer is None or peer.life is None:
            return False
        peer.life.draining = True  # it will say so itself: until then it is given nothing either
        peer.life.send(pb.Command(drain=pb.Drain()))
        return True

    def missing_roles(self) -> Sequence[str]:
        present = {life.role for life in self.peers.lives()}
        return [role for role in GENERATION.roles if role not in present]

    def content_path(self, job: Job) -> Path | None:
        return self.files.path(job)

    def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        return self.files.read(job, offset, length)

    async def content_link(self, job: Job, file_name: str) -> str | None:
        return await self.files.link(job, file_name)

    # ---- for the peers

    def _dial(self, url: EndpointURL, role: str) -> Peer:
        return Peer(url, role, self, self._options.credentials)

    def refusal(self, life: Life) -> str:
        live = {other.url for other in self.peers.lives()}
        return self._catalog.introduce(life.url, life.model, live)

    def joined(self, life: Life, hello: pb.Hello) -> None:
        self.scheduler.joined(life, hello)
        self._background.spawn(self.files.decoder_is_back(life.url))

    def left(self, life: Life) -> None:
        self.scheduler.left(life)

    def received(self, life: Life, event: pb.Event) -> None:
        if event.HasField("done") and (refusal := self.outputs.refusal(event.done.file)):
            # First: it would offer the same again, for as long as the job is not over.
            failed = pb.Failed(task_id=event.done.task_id, reason=pb.Failed.OUTPUT_STORE, message=refusal)
            self.scheduler.received(life, pb.Event(failed=failed))
            raise ContractBroken(refusal)
        if event.done.file.hand_over and self.scheduler.runs(life, event.done.task_id):
            self._background.spawn(self._take_copy(life, event, self.peers[life.url]))
        else:
            self.scheduler.received(life, event)

    # ---- inside

    def _peer_entry(self, peer: Peer) -> dict[str, object]:
        entry: dict[str, object] = {"url": str(peer.url), "role": peer.role, "state": peer.state.value}
        life = peer.life
        if life is None:
            return {**entry, "refusal": peer.refusal} if peer.refusal else entry
        cache = life.embedding_cache
        if cache is not None:
            names = cache.DESCRIPTOR.fields_by_name
            entry["embedding_cache"] = {name: getattr(cache, name) for name in names}
        return {
            **entry,
            "incarnation": life.incarnation,
            "model": life.model.name,
            "running": len(life.tasks) + life.taken_by_others,
            # Ready stages that any instance of this role may get.
            "queued": self.scheduler.dispatcher.depth(life.role, life.model.name),
            "pools": [
                {
                    "name": pool.name,
                    "bytes": pool.bytes,
                    "free_bytes": pool.free_bytes,
                    "slots_in_use": pool.slots_in_use,
                }
                for pool in life.pools
            ],
            "transfer": [
                {"from": choice.url, "engine": choice.engine, "reason": choice.reason}
                for choice in life.choices
            ],
        }

    def _fate(self, job_id: str, task_id: str) -> Fate:
        job = self._jobs.get(job_id)
        if job is None:
            # Others that use the store may run what we have not heard of yet: the role gives it up in time.
            return Fate.LEAVE if self._store.shared else Fate.DROP
        if not job.status.final or job_id in self._unrecorded:
            return Fate.LEAVE
        return Fate.ACCEPT if result_task(job) == task_id else Fate.DROP

    def _finished(self, job: Job) -> None:
        self._finish_times.append(time.monotonic())
        self._unrecorded.add(job.id)
        self._background.spawn(self._save(job), "save")
        self._watchers.notify(job.id)

    async def _save(self, job: Job) -> None:
        """The result is safe with the role until it is recorded here: tried until it is."""
        try:
            recorded = await self._record(job)
        finally:
            self._unrecorded.discard(job.id)
        if recorded:
            self.scheduler.accepted(job)
            self._tell(job)
        else:
            log.warning("job=%s was taken over by another orchestrator: its result is dropped", job.id)
            self.scheduler.dropped(job)

    async def _record(self, job: Job) -> bool:
        """False if it was not this orchestrator's to record."""
        while job.id in self._jobs:
            try:
                return not await self._store.update(job)
            except StoreError as error:
                log.error("job=%s: its end is not recorded yet: %s", job.id, error)
                await asyncio.sleep(SAVE_RETRY_SECONDS)
        return True  # it was deleted, with its file

    async def _take_copy(self, life: Life, event: pb.Event, peer: Peer) -> None:
        """The task goes on until its file is safe here: if its decoder dies before that, it runs again."""
        done = event.done
        started = time.monotonic()
        failure = await self.files.copies.take(
            peer.read_file, done, lambda: self.scheduler.runs(life, done.task_id)
        )
        if failure is None:
            done.timing.saving += time.monotonic() - started
            self.scheduler.received(life, event)
            job = self._jobs.get(done.task_id.partition("/")[0])
            if job is None or job.file is None or job.file.name != done.file.name:
                await self.files.copies.discard(done.file)
        else:
            life.send(pb.Command(release=pb.Release(task_ids=[done.task_id])))
            self.scheduler.received(life, pb.Event(failed=failure))

    def _tell(self, job: Job) -> None:
        if self._webhooks is not None:
            self._webhooks.send(job)

    async def _told(self, job: Job) -> None:
        """After a crash before this is recorded, it is told again."""
        if job.id in self._jobs:
            with contextlib.suppress(StoreError):
                await self._store.update(job)

    def _retry_after(self) -> int:
        """Seconds in which, as things go, a place in the queue comes free."""
        if len(self._finish_times) < 2:
            return 5
        each = (time.monotonic() - self._finish_times[0]) / len(self._finish_times)
        return min(max(math.ceil(each), 1), MAX_RETRY_AFTER)

    async def _go_on(self) -> None:
        """Unfinished jobs of an earlier life: what roles still run is adopted before anything is repeated."""
        await asyncio.gather(self.membership.settled(SETTLE_SECONDS), asyncio.sleep(ANNOUNCE_SECONDS))
        self.scheduler.resume()

    async def _keep_ownership(self) -> None:
        try:
            await self.ownership.keep()
        except NameTaken as error:
            self.stopped.set_exception(error)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.scheduler.expire()

    async def _review_orphans(self) -> None:
        """Work left to other orchestrators, of jobs that none of them has any more."""
        while True:
            await asyncio.sleep(ORPHAN_SECONDS)
            with contextlib.suppress(StoreError):
                for job_id in self.scheduler.unclaimed():
                    if await self._store.get(job_id) is None:
                        self.scheduler.drop_orphans(job_id)

    async def _tidy(self) -> None:
        while True:
            await self.files.tidy(self._jobs)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep(self, retention: float) -> None:
        while True:
            with contextlib.suppress(StoreError):  # the store says so itself, when a job cannot be written
                jobs = await self._store.expired(time.time() - retention, SWEEP_JOBS)
                for job in jobs:
                    self._jobs.pop(job.id, None)
                    self._watchers.notify(job.id)
                    await self.files.delete(job)
                if jobs:
                    await self._store.delete([job.id for job in jobs])
                    log.info("%d jobs were kept for %.0f s and are gone", len(jobs), retention)
                    continue
            await asyncio.sleep(min(SWEEP_SECONDS, max(retention / 4, 1.0)))
