"""Prompt in over HTTP, three role processes, frames out: bit-identical to the fused pipeline."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest

from deploy.onebox import OneBox
from orchestrator.client import VideoClient
from tests.e2e import reference

SHAPES = [(64, 64, 5), (96, 64, 9), (64, 112, 13)]


async def generate(box: OneBox, path: Path | None = None, **fields: Any) -> dict[str, Any]:
    """Runs one request to its end; downloads its file when there is a ``path``."""
    async with VideoClient(box.url) as client:
        job = await client.create(**fields)
        job = await client.wait(job["id"], timeout=120.0)
        assert job["status"] == "completed", job
        if path is not None:
            await client.download(job["id"], path, timeout=60.0)
        return job


def decoded(path: Path) -> tuple[int, int, int, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        count = sum(1 for _ in container.decode(stream))
        assert stream.average_rate is not None
        return stream.width, stream.height, count, float(stream.average_rate)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
async def test_frames_equal_the_fused_pipelines(
    box: OneBox, tiny_model: Path, tmp_path: Path, shape: tuple[int, int, int], guidance_scale: float
) -> None:
    width, height, num_frames = shape
    job = await generate(
        box,
        tmp_path / "video.mp4",
        prompt="a red circle moving right",
        size=f"{width}x{height}",
        num_frames=num_frames,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        seed=7,
        fps=8,
    )
    expected = reference.frames(
        tiny_model,
        "a red circle moving right",
        width=width,
        height=height,
        num_frames=num_frames,
        steps=3,
        guidance_scale=guidance_scale,
        seed=7,
    )
    assert job["frames_xxh3"] == reference.checksum(expected)
    assert decoded(tmp_path / "video.mp4") == (width, height, num_frames, 8.0)


async def test_eight_at_once_each_with_the_frames_of_its_own_seed(box: OneBox, tiny_model: Path) -> None:
    common = {"prompt": "eight at once", "size": "64x64", "num_frames": 5, "num_inference_steps": 2}
    jobs = await asyncio.gather(
        *(generate(box, seed=seed, guidance_scale=4.0, **common) for seed in range(8))
    )
    expected = [
        reference.checksum(
            reference.frames(
                tiny_model,
                "eight at once",
                width=64,
                height=64,
                num_frames=5,
                steps=2,
                guidance_scale=4.0,
                seed=seed,
            )
        )
        for seed in range(8)
    ]
    assert len(set(expected)) == 8
    assert [job["frames_xxh3"] for job in jobs] == expected


async def test_progress_moves_while_it_denoises(box: OneBox) -> None:
    seen: set[tuple[str, int]] = set()
    async with VideoClient(box.url) as client:
        job = await client.create(
            prompt="watch me", num_frames=17, size="128x128", num_inference_steps=20, seed=1
        )
        assert job["status"] in ("queued", "in_progress")
        job = await client.wait(
            job["id"], timeout=120.0, on_progress=lambda j: seen.add((j["status"], j["progress"]))
        )
    assert job["status"] == "completed" and job["progress"] == 100
    assert len({progress for status, progress in seen if status == "in_progress" and 0 < progress < 100}) >= 3
    names = [phase["name"] for phase in job["phases"]]
    assert names == ["queue", "encode", "transfer", "denoise", "transfer", "decode", "save"]


async def transferred(box: OneBox) -> dict[str, float]:
    """Bytes by engine, from the metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{box.url}/metrics") as reply:
        text = await reply.text()
    found: dict[str, float] = {}
    for engine, value in re.findall(r'triptych_transfer_bytes_total\{backend="(\w+)".*\} (\S+)', text):
        found[engine] = found.get(engine, 0.0) + float(value)
    return found


async def test_one_host_moves_tensors_by_shared_memory(box: OneBox) -> None:
    await generate(box, prompt="by shm", size="64x64", num_frames=5, num_inference_steps=1, seed=3)
    moved = await transferred(box)
    assert moved.keys() == {"shm"} and moved["shm"] > 0


async def test_the_same_frames_by_zmq_alone(zmq_box: OneBox, tiny_model: Path) -> None:
    job = await generate(
        zmq_box,
        prompt="by zmq",
        size="96x64",
        num_frames=9,
        num_inference_steps=2,
        seed=11,
        guidance_scale=3.0,
    )
    expected = reference.frames(
        tiny_model, "by zmq", width=96, height=64, num_frames=9, steps=2, guidance_scale=3.0, seed=11
    )
    assert job["frames_xxh3"] == reference.checksum(expected)
    moved = await transferred(zmq_box)
    assert moved.keys() == {"zmq"} and moved["zmq"] > 0


async def test_peers_are_listed_by_url_and_say_how_they_read_each_other(box: OneBox) -> None:
    await generate(box, prompt="who is there", size="64x64", num_frames=5, num_inference_steps=1, seed=4)

    async def entries() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session, session.get(f"{box.url}/v1/peers") as reply:
            return list((await reply.json())["data"])

    found = await entries()
    for _ in range(200):  # statistics come every few seconds
        if all(entry["transfer"] for entry in found if entry["role"] != "encoder"):
            break
        await asyncio.sleep(0.1)
        found = await entries()
    ports = [int(entry["url"].rpartition(":")[2]) for entry in found]
    assert ports == sorted(ports)
    assert {entry["role"]: entry["url"] for entry in found} == {r: u[0] for r, u in box.role_urls.items()}
    assert all(entry["state"] == "ready" and len(entry["pools"]) == 2 for entry in found)
    (decoder,) = [entry for entry in found if entry["role"] == "decoder"]
    assert decoder["transfer"] == [
        {"from": box.role_urls["denoiser"][0], "engine": "shm", "reason": "first choice"}
    ]


async def test_metrics_and_health_answer_while_every_role_is_busy(box: OneBox) -> None:
    async with VideoClient(box.url) as client:
        job = await client.create(
            prompt="busy", size="128x128", num_frames=17, num_inference_steps=20, seed=2
        )
        async with aiohttp.ClientSession() as session:
            answered = 0
            while (await client.retrieve(job["id"]))["status"] != "completed":
                for path in ("/health", "/readyz", "/metrics", "/v1/models"):
                    async with session.get(box.url + path) as reply:
                        assert reply.status == 200
                answered += 1
                await asyncio.sleep(0.05)
    assert answered > 1
