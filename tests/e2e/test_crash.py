"""Processes that are killed while requests are under way: what was accepted is finished."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp

from deploy.onebox import OneBox
from orchestrator.client import VideoClient

MODEL = "emulated:denoise=1"


def accept(box: OneBox, seed: int) -> str:
    body = json.dumps({"prompt": "keep me", "seed": seed}).encode()
    request = urllib.request.Request(f"{box.url}/v1/videos", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        job: dict[str, Any] = json.load(reply)
    return str(job["id"])


async def outcomes(box: OneBox, ids: list[str]) -> list[tuple[str, str]]:
    async with VideoClient(box.url) as client:
        videos = await asyncio.gather(*(client.wait(video_id, timeout=60.0) for video_id in ids))
    return [(video["status"], video.get("frames_xxh3", "")) for video in videos]


def named(box: OneBox, name: str) -> int:
    return next(i for i, process in enumerate(box.processes) if process.name.startswith(name))


async def test_a_request_that_was_answered_survives_the_orchestrator(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, OneBox(MODEL, data_dir=tmp_path / "data", log=log) as box:
        box.wait_ready(60)
        expected = await outcomes(box, [accept(box, seed) for seed in range(3)])
        ids = [accept(box, seed) for seed in range(3)]
        orchestrator = box.processes.pop(named(box, "orchestrator"))
        orchestrator.kill()
        orchestrator.wait()
        box.start_orchestrator()
        box.wait_ready(60)
        found = await outcomes(box, ids)
        assert found == expected
        assert {status for status, _ in found} == {"completed"}


async def test_killing_one_of_two_denoisers_loses_no_request(tmp_path: Path) -> None:
    counts = {"denoiser": 2}
    with (
        (tmp_path / "log").open("wb") as log,
        OneBox(MODEL, counts=counts, data_dir=tmp_path / "data", log=log) as box,
    ):
        box.wait_ready(60)
        expected = await outcomes(box, [accept(box, seed) for seed in range(6)])
        ids = [accept(box, seed) for seed in range(6)]
        victim = box.processes.pop(named(box, "denoiser"))
        victim.kill()
        victim.wait()
        assert await outcomes(box, ids) == expected


async def test_a_frozen_denoiser_loses_no_request_and_comes_back(tmp_path: Path) -> None:
    counts = {"denoiser": 2}
    with (
        (tmp_path / "log").open("wb") as log,
        OneBox(MODEL, counts=counts, data_dir=tmp_path / "data", log=log) as box,
    ):
        box.wait_ready(60)
        expected = await outcomes(box, [accept(box, seed) for seed in range(4)])
        ids = [accept(box, seed) for seed in range(4)]
        frozen = box.processes[named(box, "denoiser")]
        url = frozen.name.split()[1]
        frozen.send_signal(signal.SIGSTOP)
        try:
            assert await outcomes(box, ids) == expected
            assert await state_of(box, url) == "connecting"
        finally:
            frozen.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 30.0
        while await state_of(box, url) != "ready":
            assert time.monotonic() < deadline, "it did not come back"
            await asyncio.sleep(0.1)
        assert await outcomes(box, [accept(box, seed) for seed in range(4)]) == expected


async def state_of(box: OneBox, url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{box.url}/v1/peers") as reply:
        entries = (await reply.json())["data"]
    return next(str(entry["state"]) for entry in entries if entry["url"] == url)
