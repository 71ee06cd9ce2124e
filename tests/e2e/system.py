"""A whole system of processes as the tests of what happens when look at it."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from deploy.onebox import OneBox, Process
from orchestrator.client import Video, VideoClient
from tests.load import frames_xxh3
from triptych_proto.control_pb2 import Generation

SECONDS = 60.0  # for anything to happen


class System:
    """A box that is up, and what its log says."""

    def __init__(self, box: OneBox, log: Path) -> None:
        self.box = box
        self._log = log

    def process(self, name: str) -> Process:
        return next(process for process in self.box.processes if process.name.startswith(name))

    async def ends(self, victim: Process) -> int:
        """Waits for its exit code."""
        self.box.processes.remove(victim)
        return await asyncio.to_thread(victim.wait, SECONDS)

    async def entry(self, client: VideoClient, url: str) -> dict[str, Any]:
        entries = (await client.peers())["data"]
        return next(dict(entry) for entry in entries if entry["url"] == url)

    async def busy(self, client: VideoClient, role: str) -> Process:
        """A process of this kind, as soon as it has a task."""
        found: list[Process] = []

        async def look() -> bool:
            entries = (await client.peers())["data"]
            urls = [entry["url"] for entry in entries if entry["role"] == role and entry.get("running")]
            found[:] = [self.process(f"{role} {url}") for url in urls]
            return bool(found)

        await until(look)
        return found[0]

    async def back(self, client: VideoClient, url: str) -> None:
        await until(lambda: self.state_is(client, url, "ready"))

    async def state_is(self, client: VideoClient, url: str, *states: str) -> bool:
        return (await self.entry(client, url))["state"] in states

    async def at_rest(self, client: VideoClient) -> None:
        """Every place and every slot is free."""

        async def rest() -> bool:
            entries = (await client.peers())["data"]
            slots = sum(pool["slots_in_use"] for entry in entries for pool in entry.get("pools", ()))
            return not slots and not any(entry.get("running") for entry in entries)

        await until(rest)

    async def another_file(self) -> bool:
        """Whether the decoder still finishes a video, which it may have done already."""
        folder = self.box.data_dir / "videos"
        before = len(list(folder.glob("*.mp4")))
        for _ in range(20):
            await asyncio.sleep(0.1)
            if len(list(folder.glob("*.mp4"))) > before:
                return True
        return False

    def given(self, video_id: str) -> Counter[str]:
        """How often each stage of a video was given to a role, by orchestrators of any life."""
        return Counter(
            re.findall(rf"job={video_id} stage=(\w+) try=\d+ state=running on", self._log.read_text())
        )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SECONDS
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.05)


async def submit(client: VideoClient, count: int, prompt: str = "p") -> list[Video]:
    return [await client.create(prompt=prompt, seed=seed) for seed in range(count)]


async def completed(client: VideoClient, videos: list[Video]) -> None:
    """All of them, with the frames that were asked for."""
    for video in videos:
        ended = await client.wait(video["id"], timeout=SECONDS)
        assert ended["status"] == "completed", ended["error"]
        generation = Generation(
            prompt=ended["prompt"],
            seed=ended["seed"],
            width=64,
            height=64,
            num_frames=5,
            num_inference_steps=4,
            guidance_scale=1.0,
        )
        assert ended["frames_xxh3"] == frames_xxh3(generation)


async def attempts(client: VideoClient, videos: list[Video]) -> list[dict[str, Any]]:
    timelines = [await client.timeline(video["id"]) for video in videos]
    return [attempt for timeline in timelines for attempt in timeline["attempts"]]
