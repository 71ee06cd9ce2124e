"""The table "what happens when", a test for each row: links, limits and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.ports import free_port
from orchestrator.peers import State
from orchestrator.scheduler import SchedulerOptions
from services.role import Role
from services.task import WorkerLimits
from tests.cluster import Cluster, finished, until
from tests.door import door
from tests.link import Link
from transfer.header import RELEASED
from transfer.urls import EndpointURL

PATIENT = WorkerLimits(capacity=2, read_seconds=5.0, pool_seconds=5.0, hold_seconds=30.0)


def stored(cluster: Cluster) -> int:
    """Jobs in the database."""
    path = cluster.options.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])


def slow(cluster: Cluster, model: str) -> None:
    for instance in cluster.roles:
        instance.model = model


async def test_role_cut_off(tmp_path: Path) -> None:
    """noticed by keepalive; its tasks re-dispatched; its late results are refused and its slots come back"""
    cluster = Cluster(tmp_path, {Role.ENCODER: 1, Role.DENOISER: 2, Role.DECODER: 1}, limits=PATIENT)
    slow(cluster, "emulated:denoise=0.5")
    far = cluster.of(Role.DENOISER)[0]
    link = Link(free_port(), far.url.port)
    seen_at = EndpointURL("127.0.0.1", link.port)
    peers = tuple((seen_at if url == far.url else url, role) for url, role in cluster.options.peers)
    cluster.options = replace(cluster.options, peers=peers)
    await link.open()
    async with cluster:
        jobs = [await cluster.submit("p", seed=seed) for seed in range(6)]
        await until(lambda: bool(far.worker.tasks))
        link.freeze()
        await finished(*jobs)
        peer = cluster.orchestrator.peers[seen_at]
        assert peer.state is State.LOST
        assert {job.status.value for job in jobs} == {"completed"}
        assert any(attempt.outcome == "lost" for job in jobs for attempt in job.attempts)
        await until(lambda: not far.worker.tasks and bool(far.worker.outputs))
        link.mend()
        await until(lambda: peer.state is State.READY)
        await cluster.slots_back()
    await link.close()


async def broken_read(cluster: Cluster, *, for_ever: bool) -> list[str]:
    """A job whose denoiser finds its input damaged, the first time or always; the tasks it ran as."""
    (encoder,), (denoiser,) = cluster.of(Role.ENCODER), cluster.of(Role.DENOISER)
    fetch, reads = denoiser.endpoint.fetch, 0

    async def damaged(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        location = arguments[3]
        header = encoder.endpoint.pools[0].arena.memory[location.offset :][: len(RELEASED)]
        whole = bytes(header)
        if reads == 1:
            header[:] = RELEASED
        try:
            return await fetch(*arguments, **options)
        finally:
            if not for_ever:
                header[:] = whole

    denoiser.endpoint.fetch = damaged  # type: ignore[method-assign]
    job = await cluster.submit("p")
    await finished(job)
    assert job.status.value == "completed"
    await cluster.slots_back()
    return [f"{attempt.stage} {attempt.outcome}" for attempt in job.attempts]


async def test_consumer_fails_to_read_an_input_once(tmp_path: Path) -> None:
    """retry on the same holder"""
    async with Cluster(tmp_path) as cluster:
        assert await broken_read(cluster, for_ever=False) == ["encode done", "denoise done", "decode done"]


async def test_consumer_fails_to_read_an_input_again_and_again(tmp_path: Path) -> None:
    """then recompute the producer"""
    async with Cluster(tmp_path) as cluster:
        assert await broken_read(cluster, for_ever=True) == [
            "encode done", "denoise failed", "encode done", "denoise done", "decode done",
        ]  # fmt: skip


@pytest.mark.parametrize("ending", ["delete", "deadline"])
async def test_client_deletes_a_job_or_its_deadline_passes(tmp_path: Path, ending: str) -> None:
    """queued: gone at once; running: stopped at the next step; all slots back"""
    places = ("queued", "denoise", "decode")
    await asyncio.gather(*(ended_there(tmp_path / where, ending, where) for where in places))


async def ended_there(directory: Path, ending: str, where: str) -> None:
    directory.mkdir()
    cluster = Cluster(directory)
    slow(cluster, f"emulated:{where}=60" if where != "queued" else "emulated:")
    fields: dict[str, Any] = {"prompt": "p", "num_inference_steps": 200, "num_frames": 121}
    async with cluster, door(cluster) as front:
        (encoder,), (decoder,) = cluster.of(Role.ENCODER), cluster.of(Role.DECODER)
        if where == "queued":
            await encoder.stop()
        if ending == "deadline":
            fields["timeout"] = 3.0
        _, _, video = await front.ask("POST", "/v1/videos", **fields)
        await until(lambda: at(cluster, where))
        if ending == "delete":
            status, _, _ = await front.ask("DELETE", f"/v1/videos/{video['id']}")
            assert status == 200
            assert (await front.ask("GET", f"/v1/videos/{video['id']}"))[0] == 404
        else:
            job = await cluster.orchestrator.find(video["id"])
            assert job is not None
            await finished(job)
            _, _, video = await front.ask("GET", f"/v1/videos/{video['id']}")
            assert video["status"] == "failed" and video["error"]["code"] == "timeout"
        assert video["id"] not in cluster.orchestrator.scheduler.active
        if where == "queued":
            await encoder.start()
        await until(lambda: not any(instance.worker.tasks for instance in cluster.roles))
        await cluster.slots_back()
        assert list(decoder.directory.iterdir()) == []
        assert not [task for task in encoder.stage.made_by if where == "queued"]


def at(cluster: Cluster, where: str) -> bool:
    """Whether the one job is in this state."""
    if where == "queued":
        return cluster.orchestrator.scheduler.dispatcher.depth("encoder", "emulated") == 1
    if where == "decode":
        names = {path.suffix for path in cluster.of(Role.DECODER)[0].directory.iterdir()}
        return names == {".part", ".claim"}
    (instance,) = cluster.of(Role.DENOISER)
    return any(task.computing for task in instance.worker.tasks.values())


async def test_no_live_instance_of_a_needed_role(tmp_path: Path) -> None:
    """jobs wait up to a limit, then fail with that reason; /readyz says which role is missing; the door
    answers 503 when the wait is hopeless
    """
    cluster = Cluster(tmp_path, scheduler=SchedulerOptions(absence_seconds=0.5))
    slow(cluster, "emulated:denoise=0.5")
    async with cluster, door(cluster) as front:
        (decoder,) = cluster.of(Role.DECODER)
        _, _, video = await front.ask("POST", "/v1/videos", prompt="p")
        await until(lambda: at(cluster, "denoise"))
        await decoder.stop()
        await until(lambda: bool(cluster.orchestrator.missing_roles()))
        status, _, body = await front.ask("GET", "/readyz")
        assert status == 503 and "decoder" in body["error"]["message"]
        job = await cluster.orchestrator.find(video["id"])
        assert job is not None
        await finished(job)
        assert job.error is not None and job.error.code == "no_instance" and "decoder" in job.error.message
        before = stored(cluster)
        status, headers, body = await front.ask("POST", "/v1/videos", prompt="p")
        assert (
            status == 503 and body["error"]["code"] == "no_instance" and "decoder" in body["error"]["message"]
        )
        assert int(headers["Retry-After"]) > 0 and stored(cluster) == before
        await decoder.start()
        await until(lambda: not cluster.orchestrator.missing_roles())
        assert (await front.ask("GET", "/readyz"))[0] == 200
        assert (await front.ask("POST", "/v1/videos", prompt="p"))[0] == 200


async def test_queue_full(tmp_path: Path) -> None:
    """429 + Retry-After, before anything is stored"""
    cluster = Cluster(tmp_path, max_queue=2)
    slow(cluster, "emulated:denoise=60")
    async with cluster, door(cluster) as front:
        fields = {"prompt": "p", "num_inference_steps": 200}
        videos = [(await front.ask("POST", "/v1/videos", **fields))[2] for _ in range(2)]
        status, headers, body = await front.ask("POST", "/v1/videos", prompt="p")
        assert status == 429 and body["error"]["code"] == "queue_full"
        assert int(headers["Retry-After"]) > 0 and stored(cluster) == 2
        await front.ask("DELETE", f"/v1/videos/{videos[0]['id']}")
        assert (await front.ask("POST", "/v1/videos", **fields))[0] == 200


@pytest.mark.parametrize(
    ("field", "value"), [("size", "65x64"), ("num_frames", 4), ("num_inference_steps", 100_000)]
)
async def test_a_request_no_model_can_serve(tmp_path: Path, field: str, value: object) -> None:
    """400 naming the field, before anything is stored"""
    async with Cluster(tmp_path) as cluster, door(cluster) as front:
        status, _, body = await front.ask("POST", "/v1/videos", prompt="p", **{field: value})
        assert status == 400 and body["error"]["param"] == field and field in body["error"]["message"]
        assert stored(cluster) == 0
