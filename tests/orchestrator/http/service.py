"""A VideoService that keeps real jobs in a dict and is moved on by the tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import prometheus_client

from orchestrator.http.errors import ApiError
from orchestrator.jobs import Attempt, Job, JobError, Once, Pace, Status
from orchestrator.previews import Previews
from orchestrator.reference_memory import ReferenceMemory
from orchestrator.watchers import Watchers
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Generation, MediaFile, Model

MODEL = Model(
    name="org/tiny-wan",
    family="wan",
    spatial_multiple=16,
    temporal_multiple=4,
    max_pixels=832 * 480,
    max_frames=81,
    max_steps=50,
    negative_prompt=True,
    defaults=Generation(
        negative_prompt="blurry",
        width=64,
        height=32,
        num_frames=9,
        fps=16,
        num_inference_steps=4,
        guidance_scale=5.0,
    ),
)


def peer(url: str, role: str) -> dict[str, object]:
    """What the orchestrator says of a peer that is connected."""
    return {
        "url": url,
        "role": role,
        "state": "ready",
        "incarnation": "11aa",
        "model": MODEL.name,
        "running": 1,
        "queued": 2,
        "pools": [
            {"name": "outbox", "bytes": 64 << 20, "free_bytes": 48 << 20, "slots_in_use": 1},
            {"name": "inbox", "bytes": 3 << 29, "free_bytes": 3 << 29, "slots_in_use": 0},
        ],
        "transfer": [],
    }


def attempt(stage: str, url: str, start: float, **values: Any) -> Attempt:
    """One that was queued for half a second and ran for one."""
    times = {
        "queued_at": start,
        "started_at": start + 0.5,
        "inputs_at": start + 0.75,
        "ended_at": start + 1.5,
    }
    return Attempt(
        **{
            "stage": stage,
            "number": 1,
            "url": url,
            "incarnation": "11aa",
            "outcome": "done",
            **times,
            **values,
        }
    )


class MemoryService:
    def __init__(self, previews: Path = Path("/dev/null/nowhere")) -> None:
        self.previews = Previews(previews, 1 << 20, self.content_path, self.read_content)
        self.references = ReferenceMemory(1 << 30)
        self.sent: dict[str, tuple[bytes, ...]] = {}  # reference images, by job
        self.waiting = 0  # for jobs to end
        self.watchers = Watchers()
        self.registry = prometheus_client.CollectorRegistry()
        self.counter = prometheus_client.Counter("triptych_test", "Submitted.", registry=self.registry)
        self.served: list[Model] = [MODEL]
        self.table: dict[str, Job] = {}
        self.missing: list[str] = []
        self.retention_seconds: float | None = None
        self.stored_elsewhere: dict[str, Job] = {}  # what another orchestrator has put into the store
        self.peers = {"grpc://127.0.0.1:1": peer("grpc://127.0.0.1:1", "encoder")}
        self.announced: list[tuple[EndpointURL, str]] = []
        self.peer_refusal = ""
        self.lookups = 0
        self.refusal: Exception | None = None
        self.path: Path | None = None  # None: content is read from "the decoder"
        self.link: str | None = None  # to a store
        self.stored = b""
        self.break_after: int | None = None  # bytes after which "the decoder" dies

    def models(self) -> list[Model]:
        return self.served

    async def submit(
        self,
        model: str,
        generation: Generation,
        *,
        priority: int = 0,
        timeout: float | None = None,
        remixed_from: str | None = None,
        webhook_url: str | None = None,
        once: Once | None = None,
        images: Sequence[bytes] = (),
    ) -> Job:
        if self.refusal is not None:
            raise self.refusal
        job = Job.new(model, generation, priority, timeout)
        job.remixed_from = remixed_from
        job.webhook_url = webhook_url
        if once is not None:
            if earlier := await self.submitted(once.key):
                return earlier
            job.idempotency_key, job.request_hash = once.key, once.request
        self.table[job.id] = job
        self.sent[job.id] = tuple(images)
        self.counter.inc()
        return job

    async def images(self, job_id: str) -> tuple[bytes, ...]:
        return self.sent.get(job_id, ())

    async def submitted(self, key: str) -> Job | None:
        return next((job for job in self.table.values() if job.idempotency_key == key), None)

    async def finished(self, job_id: str) -> Job | None:
        with self.watch(job_id) as changed:
            while (job := self.table.get(job_id)) is not None and not job.status.final:
                self.waiting += 1
                try:
                    await changed.wait()
                finally:
                    self.waiting -= 1
                changed.clear()
        return job

    def watch(self, job_id: str) -> contextlib.AbstractContextManager[asyncio.Event]:
        return self.watchers.watch(job_id)

    async def find(self, job_id: str) -> Job | None:
        self.lookups += 1
        return self.table.get(job_id) or self.stored_elsewhere.get(job_id)

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        jobs = list(self.table.values())
        if newest_first:
            jobs.reverse()
        if after is not None:
            jobs = jobs[jobs.index(self.table[after]) + 1 :]
        return jobs[:limit], len(jobs) > limit

    async def delete(self, job_id: str) -> bool:
        self.lookups += 1
        await self.previews.discard(job_id)
        job = self.table.pop(job_id, None)
        self.watchers.notify(job_id)
        return job is not None

    def peer_entries(self) -> list[dict[str, object]]:
        self.lookups += 1
        return list(self.peers.values())

    async def announce(self, url: EndpointURL, role: str) -> str:
        if not self.peer_refusal:
            self.announced.append((url, role))
        return self.peer_refusal

    def drain(self, url: EndpointURL) -> bool:
        entry = self.peers.get(str(url))
        if entry is None or "incarnation" not in entry:
            return False
        entry["state"] = "draining"
        return True

    def missing_roles(self) -> list[str]:
        return self.missing

    def content_path(self, job: Job) -> Path | None:
        return self.path

    async def content_link(self, job: Job, file_name: str) -> str | None:
        return self.link and f"{self.link}/{file_name}"

    async def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        if self.break_after == 0:
            raise ApiError(503, "the decoder is gone", code="file_unavailable")
        for start in range(offset, offset + length, 1000):
            if self.break_after is not None and start - offset >= self.break_after:
                raise OSError("the decoder died")
            yield self.stored[start : min(start + 1000, offset + length)]

    def add(self) -> Job:
        job = Job.new(MODEL.name, Generation(prompt="p", width=64, height=32, num_frames=9, fps=16, seed=7))
        self.table[job.id] = job
        return job

    def complete(self, job: Job, data: bytes = b"") -> None:
        self.stored = data
        job.status, job.progress = Status.COMPLETED, 100
        job.started_at, job.completed_at = job.created_at, time.time()
        job.peak_memory_bytes = 3 << 20
        job.pace = Pace("decode", 1, 1)
        job.attempts = [
            attempt("encode", "a:1", job.created_at, compute=0.5),
            attempt(
                "denoise",
                "b:2",
                job.created_at + 1,
                engine="shm",
                transfer=0.25,
                outcome="lost",
                reason="gone",
            ),
            attempt("denoise", "c:3", job.created_at + 2, number=2, engine="shm", transfer=0.25, compute=2.0),
            attempt(
                "decode", "d:4", job.created_at + 5, engine="zmq", transfer=0.5, compute=1.0, saving=0.25
            ),
        ]
        job.file = MediaFile(
            name=f"{job.id}.mp4",
            bytes=len(data),
            content_type="video/mp4",
            width=64,
            height=32,
            num_frames=9,
            fps=16,
        )
        self.watchers.notify(job.id)

    def fail(self, job: Job, code: str = "stage_failed") -> None:
        job.status, job.error = Status.FAILED, JobError(code, "denoise failed")
        self.watchers.notify(job.id)
