"""The table "what happens when", a test for each row: processes killed, frozen, stopped, replaced."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.onebox import OneBox, Process
from deploy.ports import free_port
from orchestrator.client import VideoClient
from tests import cluster, remains
from tests.e2e.system import SECONDS, System, attempts, completed, submit, until
from tests.ports import role_urls

MODEL = "emulated:encode=0.2,denoise=0.4,decode=0.2,fatal=denoise"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("box")
    with (directory / "log").open("wb") as log:
        box = OneBox(
            MODEL,
            port=free_port(),
            data_dir=directory / "data",
            server_arguments=("--max-tries", "3"),
            log=log,
        )
        box.role_urls = role_urls({"encoder": 1, "denoiser": 2, "decoder": 1})
        with box:
            box.wait_ready(SECONDS)
            yield System(box, directory / "log")
    print((directory / "log").read_text())


@pytest.fixture
async def client(system: System) -> AsyncIterator[VideoClient]:
    async with VideoClient(system.box.url) as client:
        yield client


async def test_role_process_killed(system: System, client: VideoClient) -> None:
    """noticed at once; its tasks re-dispatched; clients see a longer wait, not an error"""
    videos = await submit(client, 6)
    victim = await system.busy(client, "denoiser")
    _, url = victim.name.split()
    first = (await system.entry(client, url))["incarnation"]
    victim.kill()
    assert await system.ends(victim) == -signal.SIGKILL
    await until(lambda: system.state_is(client, url, "lost"))
    await completed(client, videos)
    lost = [attempt for attempt in await attempts(client, videos) if attempt["outcome"] == "lost"]
    assert {attempt["incarnation"] for attempt in lost} == {first}
    system.box.start_role("denoiser", url)


async def test_role_restarted_at_the_same_url(system: System, client: VideoClient) -> None:
    """another life: what waits for the role runs there, what it was given before does not count any more"""
    videos = await submit(client, 3)
    victim = await system.busy(client, "decoder")
    role, url = victim.name.split()
    first = (await system.entry(client, url))["incarnation"]
    victim.kill()
    await system.ends(victim)
    system.box.start_role(role, url)
    await completed(client, videos)
    second = (await system.entry(client, url))["incarnation"]
    decoded = [attempt for attempt in await attempts(client, videos) if attempt["stage"] == "decode"]
    assert {(attempt["incarnation"], attempt["outcome"]) for attempt in decoded} >= {
        (first, "lost"),
        (second, "done"),
    }
    assert not list((system.box.data_dir / "videos").glob("*.part")), (
        "what the dead decoder had begun is gone"
    )


async def test_role_frozen(system: System, client: VideoClient) -> None:
    """noticed by keepalive; if it comes back its late results are refused, and its slots come back"""
    videos = await submit(client, 6)
    victim = await system.busy(client, "denoiser")
    _, url = victim.name.split()
    before = (await system.entry(client, url))["incarnation"]
    victim.send_signal(signal.SIGSTOP)
    try:
        await completed(client, videos)
        await until(lambda: system.state_is(client, url, "lost"))
    finally:
        victim.send_signal(signal.SIGCONT)
    await system.back(client, url)
    assert (await system.entry(client, url))["incarnation"] == before
    await system.at_rest(client)
    done = [a for a in await attempts(client, videos) if a["stage"] == "denoise" and a["outcome"] == "done"]
    assert len(done) == len(videos)


@pytest.mark.parametrize("moment", ["at every stage", "a result was not heard"])
async def test_orchestrator_killed(system: System, client: VideoClient, tmp_path: Path, moment: str) -> None:
    """roles go on; after restart all jobs finish; polls and downloads work again; nothing runs twice"""
    videos = await submit(client, 8)
    orchestrator = system.process("orchestrator")
    if moment == "at every stage":

        async def everywhere() -> bool:
            found = await attempts(client, videos)
            running = {attempt["stage"] for attempt in found if attempt["outcome"] == "running"}
            decoded = any(a["stage"] == "decode" and a["outcome"] == "done" for a in found)
            return decoded and running == {"encode", "denoise", "decode"}

        await until(everywhere)
    else:
        while True:
            await system.busy(client, "decoder")
            orchestrator.send_signal(signal.SIGSTOP)
            if await system.another_file():
                break
            orchestrator.send_signal(signal.SIGCONT)
            videos += await submit(client, 2)
    orchestrator.kill()
    await system.ends(orchestrator)
    system.box.start_orchestrator()
    await completed(client, videos)
    for video in videos:
        assert system.given(video["id"]) == {"encode": 1, "denoise": 1, "decode": 1}
        await client.download(video["id"], tmp_path / "video.mp4", timeout=SECONDS)


async def test_disk_of_the_output_store_full(system: System, client: VideoClient) -> None:
    """the job fails with that reason; the role lives on"""
    decoder = system.process("decoder")
    _, hard = resource.prlimit(decoder.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(decoder.pid, resource.RLIMIT_FSIZE, (100, hard))  # as if only so many bytes were left
    (video,) = await submit(client, 1)
    ended = await client.wait(video["id"], timeout=SECONDS)
    assert ended["status"] == "failed" and ended["error"]["code"] == "output_store"
    assert "File too large" in ended["error"]["message"] and ".mp4" in ended["error"]["message"]
    assert not [path for path in (system.box.data_dir / "videos").iterdir() if video["id"] in path.name]
    resource.prlimit(decoder.pid, resource.RLIMIT_FSIZE, (hard, hard))
    await completed(client, await submit(client, 1))
    assert decoder.poll() is None


async def test_sigterm_to_a_role(system: System, client: VideoClient) -> None:
    """takes no new task, finishes or hands back what it has, then exits 0"""
    videos = await submit(client, 6)
    victim = await system.busy(client, "denoiser")
    _, url = victim.name.split()
    life = (await system.entry(client, url))["incarnation"]
    victim.terminate()
    await until(lambda: system.state_is(client, url, "draining", "lost"))
    taken = [a for a in await attempts(client, videos) if a["incarnation"] == life]
    assert await system.ends(victim) == 0
    system.box.start_role("denoiser", url)
    await completed(client, videos)
    there = [a for a in await attempts(client, videos) if a["incarnation"] == life]
    assert len(there) == len(taken)
    assert {attempt["outcome"] for attempt in there} <= {"done", "refused"}


async def test_sigterm_to_a_role_twice(system: System, client: VideoClient) -> None:
    """exits at once"""
    videos = await submit(client, 6)
    victim = await system.busy(client, "denoiser")
    _, url = victim.name.split()
    orchestrator = system.process("orchestrator")
    orchestrator.send_signal(signal.SIGSTOP)  # nobody fetches its outputs: it cannot have drained yet
    try:
        victim.terminate()
        await cluster.until(lambda: not remains.pending(victim.pid, signal.SIGTERM))
        victim.terminate()
        assert await system.ends(victim) == 1
    finally:
        orchestrator.send_signal(signal.SIGCONT)
    system.box.start_role("denoiser", url)
    await completed(client, videos)
    await system.back(client, url)


@contextlib.asynccontextmanager
async def supervised(box: OneBox) -> AsyncIterator[list[int]]:
    """Meanwhile roles that end are started again; their exit codes."""
    codes: list[int] = []

    async def supervise() -> None:
        while True:
            dead = box.dead()
            if dead is not None:
                codes.append(dead.wait(SECONDS))
                box.processes.remove(dead)
                box.start_role(*dead.name.split())
            await asyncio.sleep(0.05)

    supervisor = asyncio.create_task(supervise())
    try:
        yield codes
    finally:
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor


async def test_poison_request(system: System, client: VideoClient) -> None:
    """a request that kills roles is given up after a bounded number of tries; others are served"""
    innocent = await submit(client, 2)
    poison = await client.create(prompt="a fatal prompt")
    innocent += await submit(client, 8)
    async with supervised(system.box) as codes:
        ended = await client.wait(poison["id"], timeout=SECONDS)
        await completed(client, innocent)
    assert set(codes) == {-signal.SIGKILL}
    assert ended["status"] == "failed" and ended["error"]["code"] == "stage_failed"
    assert "denoise failed 3 times" in ended["error"]["message"] and "lost" in ended["error"]["message"]
    tried = [a for a in await attempts(client, [poison]) if a["stage"] == "denoise"]
    assert [attempt["outcome"] for attempt in tried] == ["lost"] * 3
    harmed = {a["incarnation"] for a in await attempts(client, innocent) if a["outcome"] == "lost"}
    assert tried[-1]["incarnation"] not in harmed, "by then it ran alone"


async def test_device_lost(system: System, client: VideoClient) -> None:
    """the role's process ends with exit code 1; its tasks run elsewhere, as those of one that was killed"""
    innocent = await submit(client, 2)
    poison = await client.create(prompt="a lost device")
    innocent += await submit(client, 8)
    async with supervised(system.box) as codes:
        ended = await client.wait(poison["id"], timeout=SECONDS)
        await completed(client, innocent)
    assert codes == [1, 1, 1]
    assert ended["status"] == "failed" and "denoise failed 3 times" in ended["error"]["message"]
    tried = [a for a in await attempts(client, [poison]) if a["stage"] == "denoise"]
    assert [attempt["outcome"] for attempt in tried] == ["lost"] * 3


async def test_memory_of_a_device_runs_out(system: System, client: VideoClient) -> None:
    """that request fails, in one line that says so; the role lives on, and others are served by it"""
    videos = await submit(client, 4)
    huge = await client.create(prompt="a huge video")
    videos += await submit(client, 4)
    ended = await client.wait(huge["id"], timeout=SECONDS)
    assert ended["status"] == "failed"
    assert ended["error"]["message"].endswith("emulated: too little memory for this request")
    await completed(client, videos)
    assert system.box.dead() is None
    assert {attempt["outcome"] for attempt in await attempts(client, videos)} == {"done"}


async def test_restart_with_another_model_at_the_same_url(system: System, client: VideoClient) -> None:
    """it is refused, with its reason, and given nothing; the others go on"""
    victim = system.process("denoiser")
    _, url = victim.name.split()
    victim.kill()
    await system.ends(victim)
    words = ["denoiser", "--model", "emulated:latents=8192", "--url", url, "--transfer", "shm"]
    other = Process("another model", words, None)
    try:
        await until(lambda: system.state_is(client, url, "refused"))
        refusal = (await system.entry(client, url))["refusal"]
        assert "4096-8192" in refusal and "4096-4096" in refusal
        videos = await submit(client, 2)
        await completed(client, videos)
        assert url not in {attempt["url"] for attempt in await attempts(client, videos)}
    finally:
        other.terminate()
        assert await asyncio.to_thread(other.wait, SECONDS) == 0
    system.box.start_role("denoiser", url)
    await system.back(client, url)
