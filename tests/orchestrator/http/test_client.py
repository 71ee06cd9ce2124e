"""The client and ``triptych generate`` against a server on a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import test_utils, web

from orchestrator.client import ClientError, VideoClient
from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MODEL, MemoryService

DATA = os.urandom(3 << 20)
COMMAND = """
import argparse, sys
from orchestrator import generate
parser = argparse.ArgumentParser()
generate.add_arguments(parser)
sys.exit(generate.run(parser.parse_args()))
"""


@pytest.fixture
async def client(api: test_utils.TestClient) -> AsyncIterator[VideoClient]:
    async with VideoClient(str(api.make_url("/"))) as client:
        yield client


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def command(api: test_utils.TestClient, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", COMMAND, "a cat", "--server", str(api.make_url("/")), *args),
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def outcome(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


async def test_from_prompt_to_file(client: VideoClient, service: MemoryService, tmp_path: Path) -> None:
    assert [model["id"] for model in await client.models()] == [MODEL.name]
    video = await client.create(prompt="a cat", seed=3)
    job = service.table[video["id"]]
    seen: list[str] = []

    def on_progress(video: dict[str, object]) -> None:
        seen.append(str(video["status"]))
        service.complete(job, DATA)

    video = await client.wait(job.id, timeout=20, on_progress=on_progress)
    assert (video["status"], seen) == ("completed", ["queued", "completed"])
    path = tmp_path / "a.mp4"
    await client.download(job.id, path, timeout=20)
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.mp4"]
    await client.delete(job.id)
    with pytest.raises(ClientError, match="no video") as caught:
        await client.retrieve(job.id)
    assert (caught.value.status, caught.value.code) == (404, "video_not_found")


async def test_a_broken_download_leaves_the_old_file(
    client: VideoClient, service: MemoryService, tmp_path: Path
) -> None:
    job = service.add()
    service.complete(job, DATA)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    service.break_after = 1 << 20
    with pytest.raises(ClientError, match="broke off"):
        await client.download(job.id, path, timeout=0.1)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


async def test_waiting_outlives_a_restart_of_the_server(service: MemoryService) -> None:
    async def serve(port: int) -> web.AppRunner:
        runner = create_runner(service, HttpOptions())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    port = test_utils.unused_port()
    runner = await serve(port)
    job = service.add()
    async with VideoClient(f"http://127.0.0.1:{port}") as client:
        waiting = asyncio.create_task(client.wait(job.id, timeout=30))
        await until(lambda: service.lookups)
        await runner.cleanup()
        with pytest.raises(ClientError, match="cannot reach"):
            await client.retrieve(job.id)
        assert not waiting.done()
        service.complete(job)
        runner = await serve(port)
        assert (await waiting)["status"] == "completed"
    await runner.cleanup()


async def test_waiting_ends(client: VideoClient, service: MemoryService) -> None:
    job = service.add()
    with pytest.raises(ClientError, match="not finished within"):
        await client.wait(job.id, timeout=0.2)
    with pytest.raises(ClientError, match="no video"):
        await client.wait("none", timeout=20)
    async with VideoClient(f"http://127.0.0.1:{test_utils.unused_port()}") as nowhere:
        with pytest.raises(ClientError, match="cannot reach"):
            await nowhere.wait(job.id, timeout=0.5)


async def test_the_command(api: test_utils.TestClient, service: MemoryService, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    args = ("--size", "64x32", "--num-frames", "5", "--fps", "8", "--seed", "3", "--model", MODEL.name)
    process = await command(
        api, "-o", str(path), "--steps", "2", "--guidance-scale", "1.5", "--priority", "-2", *args
    )
    await until(lambda: service.lookups)
    (job,) = service.table.values()
    service.complete(job, DATA)
    code, out, err = await outcome(process)
    assert code == 0, err
    assert path.read_bytes() == DATA
    assert out.startswith(f"{path}: 64x32, 9 frames, 16 fps, seed 3\n")
    assert "transfer" in out and "c:3" in out and "6.500 s" in out
    assert f"{job.id} queued 0%" in err and "completed 100%" in err
    made = job.generation
    assert (made.prompt, made.num_frames, made.fps, made.num_inference_steps) == ("a cat", 5, 8, 2)
    assert (made.guidance_scale, made.seed, made.negative_prompt) == (1.5, 3, "blurry")
    assert job.priority == -2


async def test_ctrl_c_deletes_it(api: test_utils.TestClient, service: MemoryService, tmp_path: Path) -> None:
    process = await command(api, "-o", str(tmp_path / "a.mp4"))
    await until(lambda: service.lookups)
    process.send_signal(signal.SIGINT)
    code, _, err = await outcome(process)
    assert (code, service.table) == (130, {}), err
    assert err.splitlines()[-1] == "triptych generate: interrupted"
    assert not os.listdir(tmp_path)


async def test_command_errors(api: test_utils.TestClient, service: MemoryService, tmp_path: Path) -> None:
    refused = await outcome(await command(api, "-o", str(tmp_path / "a.mp4"), "--size", "63x32"))
    assert refused[0] == 1 and "64x32" in refused[2] and len(refused[2].splitlines()) == 1
    process = await command(api, "-o", str(tmp_path / "a.mp4"))
    await until(lambda: service.lookups)
    (job,) = service.table.values()
    service.fail(job)
    failed = await outcome(process)
    assert failed[0] == 1
    assert failed[2].splitlines()[-1] == f"triptych generate: {job.id} failed: denoise failed"
    late = await outcome(await command(api, "-o", str(tmp_path / "a.mp4"), "--timeout", "0.3"))
    assert late[0] == 1 and "not finished within 0.3 s" in late[2]
    assert list(service.table) == [job.id]
