"""Webhooks: tells a client's server that its video is completed or has failed, as OpenAI's API does.

Signed as the Standard Webhooks specification says. A delivery may arrive twice, with the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from orchestrator.background import Background, end
from orchestrator.jobs import Job, Status
from orchestrator.targets import TargetResolver, Targets
from transfer.secrets import read_secret, write_secret

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 15.0  # for one delivery, from the connection to the status line
RETRY_SECONDS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0)  # before each further attempt
RECORD_SECONDS = 1.0  # at the end, for the store to hear who was told
MAX_PENDING = 1000
MAX_AT_ONCE = 16
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64

_PREFIX = b"whsec_"
_RECORD = "record"


@dataclass(frozen=True)
class WebhookOptions:
    targets: Targets
    secret: bytes = field(repr=False)
    retry_seconds: Sequence[float] = RETRY_SECONDS
    max_pending: int = MAX_PENDING


class Webhooks:
    """Deliveries under way. ``settled`` hears of each job that was told, or given up."""

    def __init__(
        self, options: WebhookOptions, settled: Callable[[Job], Coroutine[None, None, None]]
    ) -> None:
        self._options = options
        self._settled = settled
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._records = Background()
        connector = aiohttp.TCPConnector(resolver=TargetResolver(options.targets), force_close=True)
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    def send(self, job: Job) -> None:
        """``job`` is over; its ``webhook_url`` is None once it is told. Deliveries end with the process."""
        if job.webhook_url is not None:
            task = asyncio.create_task(self._deliver(job, len(self._tasks) >= self._options.max_pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        await end(self._tasks)
        await self._records.finish(_RECORD, RECORD_SECONDS)  # who was told is not to be told again
        await self._records.close()
        await self._session.close()

    async def _deliver(self, job: Job, full: bool) -> None:
        reason = f"{self._options.max_pending} others are waiting already"
        attempts = 0
        for pause in () if full else (0.0, *self._options.retry_seconds):
            await asyncio.sleep(pause)
            if job.webhook_url is None:  # deleted
                return
            attempts += 1
            async with self._places:
                reason = await self._attempt(job, job.webhook_url)
            if not reason:
                break
        if reason:
            log.warning("job=%s webhook is given up after %d attempts: %s", job.id, attempts, reason)
        job.webhook_url = None
        self._records.spawn(self._settled(job), _RECORD)

    async def _attempt(self, job: Job, target: str) -> str:
        """Why it failed, or nothing. Never the URL: its path may be a secret."""
        try:
            url = self._options.targets.check(target)
            body = event(job)
            headers = {"Content-Type": "application/json", "User-Agent": "triptych"}
            headers.update(signature(self._options.secret, event_id(job), int(time.time()), body))
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as reply:
                return "" if 200 <= reply.status < 300 else f"{url.host} answered {reply.status}"
        except asyncio.TimeoutError:
            return f"no answer within {ATTEMPT_SECONDS:g} s"
        except aiohttp.ClientConnectorDNSError as error:
            return str(error.os_error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {ascii(str(error))[:200]}"  # it may quote the other side


def event_id(job: Job) -> str:
    """The same however often it is sent."""
    return f"evt_{job.id.removeprefix('video_')}"


def event(job: Job) -> bytes:
    """OpenAI's event: it names the video, which the receiver then retrieves."""
    kind = "video.completed" if job.status is Status.COMPLETED else "video.failed"
    created = int(job.completed_at or time.time())
    content = {"id": event_id(job), "object": "event", "type": kind, "created_at": created}
    return json.dumps({**content, "data": {"id": job.id}}).encode()


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks. ``timestamp`` is in seconds since the epoch."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def load_webhook_secret(path: Path | None, default: Path) -> bytes:
    """The secret of the file ``path``; else that of ``default``, which is made if it is not there.

    Raises OSError or ValueError that names the file.
    """
    if path is None:
        path = default
        try:
            write_secret(path, _PREFIX + base64.b64encode(secrets.token_bytes(32)) + b"\n")
        except FileExistsError:
            pass
    content = read_secret(path, 1024).strip()
    try:
        secret = base64.b64decode(content.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not content.startswith(_PREFIX) or not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"{path}: expected whsec_ and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64"
        )
    return secret
