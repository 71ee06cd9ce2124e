"""Two orchestrators on one database: each answers for all jobs, and each job is run by one that lives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from deploy.ports import free_port
from orchestrator import ownership
from orchestrator.core import Orchestrator
from orchestrator.jobs import Job, Status
from orchestrator.ownership import NameTaken
from services.role import Role
from services.task import WorkerLimits
from tests.cluster import Cluster, finished, until
from tests.link import Link
from triptych_proto.control_pb2 import Generation

PATIENT = WorkerLimits(capacity=2, read_seconds=5.0, pool_seconds=5.0, hold_seconds=30.0)


@pytest.fixture
async def cluster(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(ownership, "FENCED_SECONDS", 0.5)
    cluster = Cluster(
        tmp_path,
        {Role.ENCODER: 1, Role.DENOISER: 2, Role.DECODER: 1},
        limits=PATIENT,
        database_url=postgres_url,
        name="a",
    )
    for instance in cluster.of(Role.DENOISER):
        instance.model = "emulated:denoise=0.4"
    async with cluster:
        yield cluster
        await cluster.slots_back()


async def another(cluster: Cluster, name: str, **options: object) -> Orchestrator:
    """A further orchestrator over the same roles and the same database."""
    orchestrator = Orchestrator(replace(cluster.options, name=name, **options))  # type: ignore[arg-type]
    await orchestrator.start()
    await until(lambda: len(orchestrator.peers.lives()) == len(cluster.roles))
    return orchestrator


async def die(orchestrator: Orchestrator) -> None:
    """Its streams break and it beats no more; it says goodbye to nobody."""
    orchestrator.scheduler.stop()
    await orchestrator._background.close()
    await orchestrator.membership.close()


async def submit(orchestrator: Orchestrator, seed: int, **fields: object) -> Job:
    (model,) = orchestrator.models()
    generation = Generation()
    generation.CopyFrom(model.defaults)
    generation.MergeFrom(Generation(prompt="p", seed=seed, **fields))  # type: ignore[arg-type]
    return await orchestrator.submit(model.name, generation)


async def seen_by(orchestrator: Orchestrator, jobs: list[Job]) -> list[Job]:
    found = [await orchestrator.find(job.id) for job in jobs]
    assert None not in found
    return [job for job in found if job is not None]


def completed(orchestrator: Orchestrator, jobs: list[Job]) -> bool:
    known = [orchestrator._jobs.get(job.id) for job in jobs]
    return all(job is not None and job.status is Status.COMPLETED for job in known)


def runs(cluster: Cluster) -> Counter[str]:
    """How often each stage of each job was computed, over all instances."""
    return Counter(task.rpartition("/")[0] for role in cluster.roles for task in role.stage.made_by)


async def test_either_answers_for_all_jobs_and_each_job_is_run_by_one(cluster: Cluster) -> None:
    a, b = cluster.orchestrator, await another(cluster, "b")
    jobs = [await submit(one, seed) for seed, one in enumerate([a, b] * 4)]
    for one in (a, b):
        assert [job.owner for job in await seen_by(one, jobs)] == ["a", "b"] * 4
    await finished(*jobs)
    for one in (a, b):
        await until(lambda o=one: completed(o, jobs))
        page, more = one.page(None, 100, newest_first=False)
        assert {job.id for job in page} == {job.id for job in jobs} and not more
    assert set(runs(cluster).values()) == {1} and len(runs(cluster)) == 3 * len(jobs)
    await cluster.slots_back()
    await b.close()


async def test_progress_of_anothers_job_is_seen(cluster: Cluster) -> None:
    b = await another(cluster, "b")
    job = await submit(cluster.orchestrator, 1)
    await until(lambda: job.id in b._jobs and 0 < b._jobs[job.id].progress < 100)
    await finished(job)
    await b.close()


async def test_a_job_that_another_runs_can_be_deleted_here(cluster: Cluster) -> None:
    for instance in cluster.of(Role.DENOISER):
        await instance.stop()
        instance.model = "emulated:denoise=60"
        await instance.start()
    a, b = cluster.orchestrator, await another(cluster, "b")
    job = await submit(a, 1, num_inference_steps=200)
    await until(lambda: any(instance.worker.tasks for instance in cluster.of(Role.DENOISER)))
    assert await b.delete(job.id)
    await until(lambda: not any(instance.worker.tasks for instance in cluster.roles))
    assert await a.find(job.id) is None and job.id not in a.scheduler.active
    await b.close()


async def test_the_jobs_of_a_dead_orchestrator_are_taken_over_and_their_work_adopted(
    cluster: Cluster,
) -> None:
    a, b = cluster.orchestrator, await another(cluster, "b")
    jobs = [await submit(a, seed) for seed in range(6)]
    await until(lambda: any(job.progress > 2 for job in jobs))
    await die(a)
    try:
        await until(lambda: completed(b, jobs))
        assert {job.owner for job in await seen_by(b, jobs)} == {"b"}
        assert set(runs(cluster).values()) == {1}, "what ran was adopted"
        await cluster.slots_back()
    finally:
        await b.close()


async def test_an_orchestrator_that_stops_leaves_its_jobs_to_the_others_at_once(cluster: Cluster) -> None:
    a, b = cluster.orchestrator, await another(cluster, "b")
    jobs = [await submit(b, seed) for seed in range(4)]
    await b.close()
    await until(lambda: completed(a, jobs))
    assert set(runs(cluster).values()) == {1}


async def test_of_two_processes_of_one_name_the_first_stops(cluster: Cluster) -> None:
    a, again = cluster.orchestrator, await another(cluster, "a")
    with pytest.raises(NameTaken, match="the name a"):
        await asyncio.wait_for(asyncio.shield(a.stopped), 10)
    assert not a.scheduler.active
    job = await submit(again, 3)
    await finished(job)
    assert job.status is Status.COMPLETED
    await cluster.slots_back()
    await again.close()


@pytest.mark.parametrize("harm", ["cut", "freeze"])
async def test_one_that_cannot_reach_the_database_stops_before_its_jobs_are_taken(
    cluster: Cluster, postgres_url: str, harm: str
) -> None:
    for instance in cluster.of(Role.DENOISER):
        await instance.stop()
        instance.model = "emulated:denoise=1.5"
        await instance.start()
    url = sa.make_url(postgres_url)
    link = Link(free_port(), f"{url.query['host']}/.s.PGSQL.{url.query.get('port', 5432)}")
    await link.open()
    through = url.set(host="127.0.0.1", port=link.port, query={}).render_as_string(hide_password=False)
    b = await another(cluster, "b", database_url=through)
    jobs = [await submit(b, seed) for seed in range(3)]
    getattr(link, harm)()
    await until(lambda: not b.scheduler.active)
    a = cluster.orchestrator
    await until(lambda: completed(a, jobs))
    assert {job.owner for job in await seen_by(a, jobs)} == {"a"}
    link.mend()
    await until(lambda: completed(b, jobs))
    await cluster.slots_back()
    await b.close()
    await link.close()
