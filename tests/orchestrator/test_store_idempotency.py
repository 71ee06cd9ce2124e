"""One job for each idempotency key: whoever asks, how often, at once, after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.jobs import Job
from orchestrator.store import JobStore, StoreError
from triptych_proto.control_pb2 import Generation


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(database_url)
    await store.open()
    yield store
    await store.close()


def new_job(key: str | None) -> Job:
    job = Job.new("m", Generation(prompt="p"))
    job.idempotency_key, job.request_hash = key, "r" * 64
    return job


async def test_the_first_job_of_a_key_stays_the_only_one(store: JobStore) -> None:
    first, second, other = new_job("k" * 64), new_job("k" * 64), new_job("o")
    assert await store.find_by_key("k" * 64) is None
    assert await store.add(first) == first
    assert await store.add(second) == first
    assert await store.add(other) == other
    assert await store.find_by_key("k" * 64) == first
    assert await store.load() == [first, other]


async def test_jobs_without_a_key_are_all_kept(store: JobStore) -> None:
    jobs = [new_job(None) for _ in range(3)]
    for job in jobs:
        assert await store.add(job) == job
    assert await store.load() == jobs
    with pytest.raises(StoreError):
        await store.add(jobs[0])


async def test_a_deleted_job_frees_its_key(store: JobStore) -> None:
    first, second = new_job("k"), new_job("k")
    await store.add(first)
    await store.delete([first.id])
    assert await store.find_by_key("k") is None
    assert await store.add(second) == second


async def test_a_key_survives_changes_and_restarts(database_url: str) -> None:
    job = new_job("k")
    job.remixed_from = "video_1"
    store = JobStore(database_url)
    await store.open()
    await store.add(job)
    job.progress = 50
    assert await store.update(job) == []
    await store.close()
    store = JobStore(database_url)
    await store.open()
    assert await store.find_by_key("k") == job
    assert await store.add(new_job("k")) == job
    await store.close()


async def test_orchestrators_that_are_asked_at_once_agree(postgres_url: str) -> None:
    stores = [JobStore(postgres_url) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    keys = [f"key-{number}" for number in range(10)]
    answers = await asyncio.gather(*(store.add(new_job(key)) for key in keys for store in stores))
    kept = await stores[0].load()
    assert sorted(job.idempotency_key or "" for job in kept) == keys
    assert {job.id for job in answers} == {job.id for job in kept}
    for store in stores:
        await store.close()
