"""The orchestrator as its HTTP handlers see it: ties job store, peers and scheduler together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from orchestrator.catalog import Catalog
from orchestrator.graph import GENERATION
from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job
from orchestrator.metrics import Metrics
from orchestrator.peers import Life, Peer, Peers
from orchestrator.scheduler import Scheduler, SchedulerOptions
from orchestrator.state_metrics import StateCollector
from orchestrator.store import JobStore
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoreOptions:
    peers: tuple[tuple[EndpointURL, str], ...]  # endpoint and the kind of role expected there
    database_url: str
    output_dir: Path  # where decoders on this host, or on a shared disk, write
    max_queue: int = 1000  # jobs accepted and not over
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)


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
        self.scheduler = Scheduler(
            secrets.token_hex(4), self.peers.lives, self._finished, self._metrics, options.scheduler
        )
        self.registry.register(StateCollector(self.scheduler, self.peers))
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Reads the store, takes up what was not finished, dials the roles."""
        await self._store.open()
        for job in await self._store.load():
            self._jobs[job.id] = job
            if not job.status.final:
                log.info("job=%s state=queued: taken up again", job.id)
                self.scheduler.add(job)
        for url, role in self._options.peers:
            self.peers.add(url, Peer(url, role, self))
        self._spawn(self._expire())

    async def close(self) -> None:
        await self.peers.close()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._store.close()

    # ---- for the HTTP handlers

    def models(self) -> Sequence[pb.Model]:
        return self._catalog.models()

    async def submit(self, model: str, generation: pb.Generation) -> Job:
        """Stores the job, then gives it to the scheduler. ApiError 429 when the queue is full."""
        if len(self.scheduler.active) >= self._options.max_queue:
            raise ApiError(
                429,
                f"{self._options.max_queue} requests are waiting already",
                code="queue_full",
                type="rate_limit_error",
                headers={"Retry-After": "5"},
            )
        job = Job.new(model, generation)
        await self._store.add(job)
        self._jobs[job.id] = job
        self.scheduler.add(job)
        return job

    def job(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def jobs(self) -> Sequence[Job]:
        return list(self._jobs.values())

    async def delete(self, job_id: str) -> bool:
        """Stops the job if it runs, and removes its row and its file."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        self.scheduler.remove(job_id)
        await self._store.delete(job_id)
        path = self.content_path(job)
        if path is not None:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        elif job.file is not None and (peer := self._peer(job.file_url)) is not None:
            with contextlib.suppress(grpc.aio.AioRpcError):  # a decoder that is gone has nothing to serve
                await peer.delete_file(job.file.name)
        log.info("job=%s state=deleted", job_id)
        return True

    def peer_entries(self) -> Sequence[dict[str, object]]:
        return [self._peer_entry(peer) for peer in self.peers.values()]

    def missing_roles(self) -> Sequence[str]:
        present = {life.role for life in self.peers.lives()}
        return [role for role in GENERATION.roles if role not in present]

    def content_path(self, job: Job) -> Path | None:
        """The finished file, if this host sees the disk it was written to."""
        if job.file is None:
            return None
        path = self._options.output_dir / Path(job.file.name).name
        try:
            return path if path.stat().st_size == job.file.bytes else None
        except OSError:
            return None

    async def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The file's bytes from the decoder that wrote it. ApiError 503 when it cannot be reached."""
        peer = self._peer(job.file_url)
        if peer is None or job.file is None:
            raise ApiError(
                503,
                f"the decoder {job.file_url} that holds the file is unknown here",
                code="file_unavailable",
            )
        try:
            async for data in peer.read_file(job.file.name, offset, length):
                yield data
        except grpc.aio.AioRpcError as error:
            raise ApiError(
                503,
                f"the decoder {job.file_url} that holds the file: {error.details()}",
                code="file_unavailable",
            ) from error

    # ---- for the peers

    def refusal(self, life: Life) -> str:
        live = {other.url for other in self.peers.lives()}
        return self._catalog.introduce(life.url, life.model, live)

    def joined(self, life: Life, hello: pb.Hello) -> None:
        self.scheduler.joined(life, hello)

    def left(self, life: Life) -> None:
        self.scheduler.left(life)

    def received(self, life: Life, event: pb.Event) -> None:
        self.scheduler.received(life, event)

    # ---- inside

    def _peer(self, url: str) -> Peer | None:
        try:
            return self.peers.get(EndpointURL.parse(url))
        except ValueError:
            return None

    def _peer_entry(self, peer: Peer) -> dict[str, object]:
        entry: dict[str, object] = {"url": str(peer.url), "role": peer.role, "state": peer.state.value}
        life = peer.life
        if life is None:
            return {**entry, "refusal": peer.refusal} if peer.refusal else entry
        queue = self.scheduler.queues.get((life.role, life.model.name))
        return {
            **entry,
            "incarnation": life.incarnation,
            "model": life.model.name,
            "running": len(life.tasks),
            "queued": len(queue) if queue else 0,  # ready stages that any instance of this role may get
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

    def _finished(self, job: Job) -> None:
        self._spawn(self._save(job))

    async def _save(self, job: Job) -> None:
        if job.id in self._jobs:
            await self._store.update(job)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.scheduler.expire()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task failed", exc_info=task.exception())
