"""Videos of the floor that are made after their request was answered, and what polls see of them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Protocol

from aiohttp import web

from benchmarks.floor.clip import FPS


class Maker(Protocol):
    def accept(self, body: str) -> str: ...

    async def make(self, job: str, prompt: str) -> None: ...

    def file(self, job: str) -> web.Response: ...


class Polled:
    """Answers polls from memory, with the fields that Triptych's answers have. An answer is put together when
    something has changed: when the video is asked for, and at its end. Stages tell of no progress.
    """

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._answers: dict[str, bytes] = {}
        self._making: set[asyncio.Task[None]] = set()  # the event loop alone would not keep them

    async def create(self, request: web.Request) -> web.Response:
        body = await request.text()
        fields = json.loads(body)
        video = _begun(self._maker.accept(body), fields)
        answer = self._keep(video)
        task = asyncio.create_task(self._make(video))
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        return _json(answer)

    async def show(self, request: web.Request) -> web.Response:
        return _json(self._answers[request.match_info["id"]])

    async def content(self, request: web.Request) -> web.StreamResponse:
        return self._maker.file(request.match_info["id"])

    async def _make(self, video: dict[str, Any]) -> None:
        try:
            await self._maker.make(video["id"], video["prompt"])
        except ConnectionError as error:
            video["status"], video["error"] = "failed", {"code": "stage", "message": str(error)}
        else:
            video["status"], video["progress"] = "completed", 100
        video["completed_at"] = int(time.time())
        self._keep(video)

    def _keep(self, video: dict[str, Any]) -> bytes:
        answer = self._answers[video["id"]] = json.dumps(video).encode()
        return answer


def _json(answer: bytes) -> web.Response:
    return web.Response(body=answer, content_type="application/json")


def _begun(job: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": job,
        "object": "video",
        "model": "floor",
        "status": "in_progress",
        "progress": 0,
        "step": None,
        "total_steps": None,
        "steps_per_second": None,
        "seconds_left": None,
        "priority": 0,
        "created_at": int(time.time()),
        "completed_at": None,
        "expires_at": None,
        "deadline": None,
        "prompt": fields["prompt"],
        "size": fields["size"],
        "seconds": f"{fields['num_frames'] / FPS:g}",
        "num_frames": fields["num_frames"],
        "fps": FPS,
        "seed": fields.get("seed"),
        "quality": "standard",
        "remixed_from_video_id": None,
        "error": None,
        "phases": [],
        "stage_durations": {},
    }
