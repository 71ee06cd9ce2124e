"""Clients that ask for videos of all kinds, delete some, and know what every one of them must be."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import xxhash
from PIL.Image import Image

from orchestrator.client import ClientError, Video, VideoClient
from services.model.base import Limits
from services.model.emulated import EmulatedModel
from services.role import Role
from triptych_proto.control_pb2 import Generation

SIZES = "embeddings=1000000,latents=4000000"
MODEL = f"emulated:encode=0.05,denoise=0.3,decode=0.1,{SIZES}"
JOB_SECONDS = 300.0  # a job that takes longer counts as lost
DELETED = 0.15  # share of the jobs that their clients delete, at any time of their lives
PLAYED = 0.1  # share of the completed ones that are downloaded and decoded
REFUSED_SECONDS = 0.2  # until a client that was refused asks again


@dataclass(frozen=True)
class Wanted:
    """A request, and what must become of it."""

    generation: Generation
    frames_xxh3: str

    def fields(self) -> dict[str, Any]:
        names = ("prompt", "width", "height", "num_frames", "num_inference_steps", "seed")
        return {name: getattr(self.generation, name) for name in names}


class Unwatched:
    def raise_if_cancelled(self) -> None: ...

    def progress(self, step: int, total: int) -> None: ...


def frames_xxh3(generation: Generation, sizes: str = "", images: Sequence[Image] = ()) -> str:
    """What the emulated model makes of a request, computed here, without any other process."""
    roles = {role: EmulatedModel(role, f"emulated:{sizes}", Limits()) for role in Role}
    values: Mapping[str, Any] = roles[Role.ENCODER].run(generation, {}, Unwatched(), images)
    values = roles[Role.DENOISER].run(generation, values, Unwatched())
    checksum = xxhash.xxh3_64()
    for frame in roles[Role.DECODER].decode(generation, values, Unwatched()).frames:
        checksum.update(np.ascontiguousarray(frame).data)
    return checksum.hexdigest()


def catalogue() -> dict[str, Wanted]:
    """Requests by prompt."""
    found = {}
    choices = itertools.product(((64, 64), (96, 64), (256, 128)), (1, 5, 17), (1, 4, 9))
    for number, ((width, height), frames, steps) in enumerate(choices):
        generation = Generation(prompt=f"chaos {number}", width=width, height=height, num_frames=frames)
        generation.num_inference_steps, generation.seed, generation.guidance_scale = steps, number, 1.0
        found[generation.prompt] = Wanted(generation, frames_xxh3(generation, SIZES))
    return found


class Load:
    """What clients have asked for; whatever is wrong goes to ``findings``."""

    def __init__(self, server: str, seed: int, directory: Path, findings: list[str]) -> None:
        self._server = server
        self.deleted: set[str] = set()
        self.played = 0
        self._accepted: set[str] = set()
        self._catalogue = catalogue()
        self._chance = random.Random(seed)
        self._directory = directory
        self._findings = findings

    async def run(self, client: VideoClient, end: float) -> None:
        """One client, which has one job at a time; the last may end after ``end`` (monotonic)."""
        while time.monotonic() < end:
            wanted = self._chance.choice(list(self._catalogue.values()))
            try:
                video = await client.create(**wanted.fields(), priority=self._chance.randint(-2, 2))
            except ClientError as error:
                if not error.transient:
                    self._findings.append(f"a request was refused: {error}")
                await asyncio.sleep(REFUSED_SECONDS)
                continue
            self._accepted.add(video["id"])
            if self._chance.random() < DELETED:
                await asyncio.sleep(self._chance.uniform(0.0, 2.0))
                await self._delete(client, video["id"])
            else:
                await self._finish(client, video["id"], wanted)

    async def unfinished(self) -> list[str]:
        """Raises ClientError, as ``verify`` does."""
        return [video["id"] for video in await self._all() if video["status"] not in ("completed", "failed")]

    async def verify(self) -> set[str]:
        """Compares all there is with what was asked for; returns the ids of the completed.

        A client that got no reply to its request does not know of its job, but the server does.
        """
        videos = {video["id"]: video for video in await self._all()}
        self._findings += [
            f"{video_id} is gone" for video_id in self._accepted - self.deleted - videos.keys()
        ]
        self._findings += [
            f"{video_id} was deleted and is there" for video_id in self.deleted & videos.keys()
        ]
        for video in videos.values():
            self._check(video)
        return {video_id for video_id, video in videos.items() if video["status"] == "completed"}

    def _check(self, video: Video) -> None:
        wanted = self._catalogue[video["prompt"]]
        if video["status"] != "completed":
            self._findings.append(f"{video['id']} is {video['status']}: {video['error']}")
        elif video["frames_xxh3"] != wanted.frames_xxh3:
            self._findings.append(f"{video['id']} has wrong frames")

    async def _finish(self, client: VideoClient, video_id: str, wanted: Wanted) -> None:
        try:
            video = await client.wait(video_id, timeout=JOB_SECONDS)
            if video["status"] == "completed" and self._chance.random() < PLAYED:
                path = self._directory / f"{video_id}.mp4"
                await client.download(video_id, path, timeout=JOB_SECONDS)
                frames = await asyncio.to_thread(_frames, path)
                path.unlink()
                self.played += 1
                if frames != wanted.generation.num_frames:
                    self._findings.append(f"{video_id} plays to {frames} frames")
        except (ClientError, OSError) as error:
            self._findings.append(f"{video_id}: {error!r}")

    async def _all(self) -> list[Video]:
        videos: list[Video] = []
        more = True
        try:
            async with aiohttp.ClientSession() as session:
                while more:
                    query = {"limit": "100", "order": "asc"} | ({"after": videos[-1]["id"]} if videos else {})
                    async with session.get(f"{self._server}/v1/videos", params=query) as reply:
                        page = await reply.json()
                    videos += page["data"]
                    more = page["has_more"]
        except (aiohttp.ClientError, asyncio.TimeoutError, KeyError) as error:
            raise ClientError(f"the videos cannot be listed: {error!r}") from error
        return videos

    async def _delete(self, client: VideoClient, video_id: str) -> None:
        unanswered = False
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            try:
                await client.delete(video_id)
                break
            except ClientError as error:
                if error.status == 404 and unanswered:
                    break
                if not error.transient or time.monotonic() > deadline:
                    self._findings.append(f"{video_id} cannot be deleted: {error}")
                    return
                unanswered = True
                await asyncio.sleep(REFUSED_SECONDS)
        self.deleted.add(video_id)


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
