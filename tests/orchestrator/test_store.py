"""The job store on real files, through the death of its process."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.jobs import Job, JobError, Phase, Status
from orchestrator.store import SCHEMA_VERSION, JobStore, StoreError
from triptych_proto.control_pb2 import Generation, MediaFile

GENERATION = Generation(
    prompt="a cat, “grün” 🐈",
    width=64,
    height=32,
    num_frames=9,
    fps=23.976,
    num_inference_steps=4,
    guidance_scale=0.1,
    seed=2**64 - 1,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/jobs.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[JobStore]:
    store = JobStore(url)
    await store.open()
    yield store
    await store.close()


async def reopened(url: str) -> list[Job]:
    store = JobStore(url)
    await store.open()
    try:
        return await store.load()
    finally:
        await store.close()


async def test_jobs_come_back_as_they_were(store: JobStore, url: str) -> None:
    queued = Job.new("m", GENERATION)
    failed = Job.new("m", GENERATION)
    await store.add(queued)
    await store.add(failed)
    failed.status, failed.error = Status.FAILED, JobError("code", "why")
    await store.update(failed)
    done = Job.new("m", GENERATION)
    await store.add(done)
    done.status, done.progress = Status.COMPLETED, 100
    done.started_at, done.completed_at = done.created_at + 0.25, done.created_at + 1e-3
    done.file = MediaFile(name="a.mp4", bytes=2**63 + 1, content_type="video/mp4", fps=23.976)
    done.file_url, done.peak_memory_bytes = "grpc://h:1", 2**40
    done.phases = [Phase("queue", 0.1), Phase("encode", 0.2, "grpc://h:2")]
    await store.update(done)
    assert await reopened(url) == [queued, failed, done]


async def test_a_write_is_of_the_job_at_the_call(store: JobStore) -> None:
    job = Job.new("m", GENERATION)
    adding = store.add(job)
    await adding
    updating = store.update(job)
    await updating
    job.progress = 50
    assert (await store.load())[0].progress == 0


async def test_order_delete_and_unknown_ids(store: JobStore) -> None:
    jobs = [Job.new("m", GENERATION) for _ in range(5)]
    for job in jobs:
        await store.add(job)
    jobs[0].progress = 7
    await store.update(jobs[0])  # does not move it
    await store.delete(jobs[2].id)
    await store.delete("no such job")
    await store.update(jobs[2])  # stays deleted
    assert await store.load() == [jobs[0], jobs[1], jobs[3], jobs[4]]
    with pytest.raises(StoreError, match=r"jobs\.db"):
        await store.add(jobs[0])


CRASH = """
import asyncio, os, signal, sys
from orchestrator.jobs import Job
from orchestrator.store import JobStore
from triptych_proto.control_pb2 import Generation

async def main():
    store = JobStore(sys.argv[1])
    await store.open()
    for number in range(20):
        await store.add(Job(id=str(number), model="m", generation=Generation(seed=2**64 - 1), created_at=0.0))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_what_was_added_survives_a_killed_process(url: str) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", CRASH, url], cwd=root, timeout=60, check=False)
    assert process.returncode == -9
    jobs = asyncio.run(reopened(url))
    assert [job.id for job in jobs] == [str(number) for number in range(20)]
    assert {job.generation.seed for job in jobs} == {2**64 - 1}


async def test_a_newer_schema_is_refused(store: JobStore, url: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    connection.close()
    newer = JobStore(url)
    with pytest.raises(StoreError, match=f"version {SCHEMA_VERSION + 1}"):
        await newer.open()
    await newer.close()


@pytest.mark.parametrize("url", ["not a url", "sqlite://h/x", "nosuchdb:///x"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StoreError, match="database URL"):
        JobStore(url)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database" * 100)
    store = JobStore(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        await store.open()
    await store.close()
