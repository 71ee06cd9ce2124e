"""What the HTTP handlers need of the orchestrator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

import prometheus_client
from aiohttp import web

from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job
from triptych_proto.control_pb2 import Generation, Model


class VideoService(Protocol):
    """Jobs and where they run. Look-ups are from memory; nothing here blocks the event loop."""

    registry: prometheus_client.CollectorRegistry

    def models(self) -> Sequence[Model]:
        """The models served; empty while no role has introduced itself."""

    async def submit(self, model: str, generation: Generation) -> Job:
        """A new job, stored durably. Raises ApiError: 429 (queue full) or 503 (no role to run it)."""

    def job(self, job_id: str) -> Job | None: ...

    def jobs(self) -> Sequence[Job]:
        """All jobs, oldest first."""

    async def delete(self, job_id: str) -> bool:
        """Cancels the job if it runs, and removes it with its file. False if there is no such job."""

    def peer_entries(self) -> Sequence[dict[str, object]]:
        """The configured roles in the order of their URLs, as operators see them."""

    def missing_roles(self) -> Sequence[str]:
        """The roles without a live instance."""

    def content_path(self, job: Job) -> Path | None:
        """The file of a completed job, where this host sees the output store."""

    def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The same bytes from the decoder that wrote them. Raises ApiError before the first chunk."""


SERVICE: web.AppKey[VideoService] = web.AppKey("service")
OPTIONS = web.AppKey("options", HttpOptions)
