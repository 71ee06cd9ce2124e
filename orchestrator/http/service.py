"""What the HTTP handlers need of the orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import prometheus_client
from aiohttp import web

from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Once
from orchestrator.previews import Previews
from orchestrator.reference_memory import ReferenceMemory
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Generation, Model


class VideoService(Protocol):
    """Jobs and where they run. Nothing here blocks the event loop, but for what says so."""

    registry: prometheus_client.CollectorRegistry
    previews: Previews
    references: ReferenceMemory

    @property
    def retention_seconds(self) -> float | None:
        """How long a finished job and its file are kept; None: until they are deleted."""

    def models(self) -> Sequence[Model]:
        """The models served; empty while no role has introduced itself."""

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
        """A new job, stored durably; it fails when ``timeout`` seconds are over; ``webhook_url`` is
        told of its end; ``images`` are its reference images. With ``once`` it may be another, earlier one:
        that of the same key, whose ``request_hash`` need not be the same.

        Raises ApiError: 429 (queue or memory full) or 503 (no instance of a role for too long).
        """

    async def submitted(self, key: str) -> Job | None:
        """The job that a request with this key in its ``Once`` has made."""

    async def images(self, job_id: str) -> tuple[bytes, ...]:
        """The reference images of a job that has not failed."""

    async def finished(self, job_id: str) -> Job | None:
        """The job as soon as it is over; None as soon as there is no such job."""

    async def find(self, job_id: str) -> Job | None:
        """From memory, else from the store, where another orchestrator may have put it."""

    def watch(self, job_id: str) -> AbstractContextManager[asyncio.Event]:
        """The event is set whenever the job has changed or is gone, which ``find`` then tells."""

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """At most ``limit`` of the jobs in memory by age, those after the one of id ``after``, and whether
        there are more. Raises KeyError for an unknown ``after``.
        """

    async def delete(self, job_id: str) -> bool:
        """Cancels the job if it runs, and removes it with its file. False if there is no such job."""

    def peer_entries(self) -> Sequence[dict[str, object]]:
        """The configured roles in the order of their URLs, as operators see them."""

    async def announce(self, url: EndpointURL, role: str) -> str:
        """A role says that it is there: it is dialled like a configured one. Returns why not, or nothing."""

    def drain(self, url: EndpointURL) -> bool:
        """Asks the peer to take no new task. False if it is unknown or not connected."""

    def missing_roles(self) -> Sequence[str]:
        """The roles without a live instance."""

    def content_path(self, job: Job) -> Path | None:
        """The file of a completed job, where this host sees the output store. This one asks the disk, so it
        is called on another thread.
        """

    async def content_link(self, job: Job, file_name: str) -> str | None:
        """Where a client may get the file of a completed job, under that name, from its store; None: here."""

    def read_content(self, job: Job, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The same bytes from their store or decoder. Raises ApiError before the first chunk."""


SERVICE: web.AppKey[VideoService] = web.AppKey("service")
OPTIONS = web.AppKey("options", HttpOptions)
