"""What the orchestrator does with finished jobs: record, keep for a time, delete with their files."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from orchestrator import core
from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job, Status
from orchestrator.scheduler import SchedulerOptions
from orchestrator.store import JobStore, StoreError
from services.role import Role
from tests.cluster import Cluster, finished, until


async def stored(cluster: Cluster) -> list[Job]:
    return await cluster.orchestrator._store.load()


async def nothing_stored(cluster: Cluster) -> None:
    while await stored(cluster):  # noqa: ASYNC110 a database cannot be waited for
        await asyncio.sleep(0.01)


async def test_finished_jobs_and_their_files_go_after_the_retention(tmp_path: Path) -> None:
    async with Cluster(tmp_path, retention_seconds=1.0) as cluster:
        jobs = [await cluster.submit("p", seed=seed) for seed in range(3)]
        await finished(*jobs)
        assert all(cluster.orchestrator.content_path(job) for job in jobs)
        await until(lambda: not cluster.orchestrator._jobs)
        await until(lambda: list((tmp_path / "videos").iterdir()) == [])
        await asyncio.wait_for(nothing_stored(cluster), 15)


async def test_without_a_retention_they_stay(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        job = await cluster.submit("p")
        await finished(job)
        await cluster.slots_back()
        assert [kept.id for kept in await stored(cluster)] == [job.id]
        assert cluster.orchestrator.retention_seconds is None


async def test_a_file_on_a_decoder_that_is_away_is_deleted_when_it_is_back(tmp_path: Path) -> None:
    async with Cluster(tmp_path, output_dir=tmp_path / "not where the decoder writes") as cluster:
        (decoder,) = cluster.of(Role.DECODER)
        job = await cluster.submit("p")
        await finished(job)
        await cluster.slots_back()
        (file,) = (tmp_path / "videos").glob("*.mp4")
        await decoder.stop()
        await until(lambda: cluster.orchestrator.peers[decoder.url].life is None)
        assert await cluster.orchestrator.delete(job.id)
        assert file.exists() and await cluster.orchestrator.find(job.id) is None
        await decoder.start()
        await until(lambda: not file.exists())


async def test_a_result_is_held_by_its_role_until_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "SAVE_RETRY_SECONDS", 0.05)
    update, calls = JobStore.update, itertools.count()
    repaired: list[bool] = []

    async def failing(store: JobStore, job: Job) -> list[str]:
        next(calls)
        if not repaired:
            raise StoreError("job store: disk full")
        return await update(store, job)

    monkeypatch.setattr(JobStore, "update", failing)
    async with Cluster(tmp_path) as cluster:
        (decoder,) = cluster.of(Role.DECODER)
        job = await cluster.submit("p")
        await finished(job)
        await until(lambda: next(calls) > 3)
        assert len(decoder.worker.outputs) == 1, "an orchestrator that dies now would find it there"
        repaired.append(True)
        await cluster.slots_back()
        (kept,) = await stored(cluster)
        assert kept.status is Status.COMPLETED


async def test_a_job_that_is_deleted_while_it_is_recorded_leaves_nothing(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        for seed in range(5):
            job = await cluster.submit("p", seed=seed)
            await until(lambda j=job: j.status.final)
            assert await cluster.orchestrator.delete(job.id)
        await cluster.slots_back()
        await until(lambda: list((tmp_path / "videos").iterdir()) == [])
        assert await stored(cluster) == []


async def test_the_door_refuses_before_anything_is_stored(tmp_path: Path) -> None:
    options = SchedulerOptions(absence_seconds=0.2)
    async with Cluster(tmp_path, scheduler=options, max_queue=2) as cluster:
        for instance in cluster.of(Role.ENCODER):
            await instance.stop()
        await until(lambda: cluster.orchestrator.missing_roles() == ["encoder"])
        jobs = [await cluster.submit("p", seed=seed) for seed in range(2)]
        with pytest.raises(ApiError, match="waiting already") as full:
            await cluster.submit("p")
        assert full.value.status == 429 and int(full.value.headers["Retry-After"]) >= 1
        await finished(*jobs)
        assert {job.error.code for job in jobs if job.error} == {"no_instance"}
        with pytest.raises(ApiError, match="no encoder") as hopeless:
            await cluster.submit("p")
        assert hopeless.value.status == 503 and int(hopeless.value.headers["Retry-After"]) >= 1
        assert len(await stored(cluster)) == 2
        for instance in cluster.of(Role.ENCODER):
            await instance.start()
        await until(lambda: cluster.orchestrator.missing_roles() == [])
        job = await cluster.submit("p")
        await finished(job)
        assert job.status is Status.COMPLETED
        await cluster.slots_back()


async def test_a_request_has_at_most_the_servers_time(tmp_path: Path) -> None:
    options = SchedulerOptions(job_seconds=50.0)
    async with Cluster(tmp_path, scheduler=options) as cluster:
        (model,) = cluster.orchestrator.models()
        plain = await cluster.submit("p")
        short = await cluster.orchestrator.submit(model.name, model.defaults, timeout=5.0)
        greedy = await cluster.orchestrator.submit(model.name, model.defaults, timeout=500.0)
        spans = [round(job.deadline - job.created_at) for job in (plain, short, greedy) if job.deadline]
        assert spans == [50, 5, 50]
        await finished(plain, short, greedy)
        await cluster.slots_back()
