"""A VideoService that keeps real jobs in a dict and is moved on by the tests."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from pathlib import Path

import prometheus_client

from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job, JobError, Phase, Status
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


class MemoryService:
    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.counter = prometheus_client.Counter("triptych_test", "Submitted.", registry=self.registry)
        self.served: list[Model] = [MODEL]
        self.table: dict[str, Job] = {}
        self.missing: list[str] = []
        self.lookups = 0
        self.refusal: Exception | None = None
        self.path: Path | None = None  # None: content is read from "the decoder"
        self.stored = b""
        self.break_after: int | None = None  # bytes after which "the decoder" dies

    def models(self) -> list[Model]:
        return self.served

    async def submit(self, model: str, generation: Generation) -> Job:
        if self.refusal is not None:
            raise self.refusal
        job = Job.new(model, generation)
        self.table[job.id] = job
        self.counter.inc()
        return job

    def job(self, job_id: str) -> Job | None:
        self.lookups += 1
        return self.table.get(job_id)

    def jobs(self) -> list[Job]:
        return list(self.table.values())

    async def delete(self, job_id: str) -> bool:
        return self.table.pop(job_id, None) is not None

    def peer_entries(self) -> list[dict[str, object]]:
        return [{"url": "grpc://127.0.0.1:1", "role": "encoder", "state": "ready"}]

    def missing_roles(self) -> list[str]:
        return self.missing

    def content_path(self, job: Job) -> Path | None:
        return self.path

    async def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        if self.break_after == 0:
            raise ApiError(503, "the decoder is gone", code="content_unavailable")
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
        job.phases = [Phase("queue", 1.0), Phase("transfer", 0.25, "a:1"), Phase("transfer", 0.5, "b:2")]
        job.file = MediaFile(
            name=f"{job.id}.mp4",
            bytes=len(data),
            content_type="video/mp4",
            width=64,
            height=32,
            num_frames=9,
            fps=16,
        )

    def fail(self, job: Job) -> None:
        job.status, job.error = Status.FAILED, JobError("stage_failed", "denoise failed")
