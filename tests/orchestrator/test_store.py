"""The job store on real databases of both kinds, through the death of its process."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.jobs import Attempt, Job, JobError, Pace, Status
from orchestrator.store import JobStore, StoreError
from triptych_proto.control_pb2 import Generation, MediaFile

ROOT = Path(__file__).parents[2]
GENERATION = Generation(
    prompt="a cat, “grün” 🐈 \0 and more", width=64, height=32, fps=23.976, guidance_scale=0.1, seed=2**64 - 1
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(database_url)
    await store.open()
    yield store
    await store.close()


def new_job() -> Job:
    return Job.new("m", GENERATION)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # NUL and half surrogate pairs too
UTF8_TEXT = st.text(max_size=20)
COLUMN_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
FLOAT = st.floats(allow_nan=False)
UINT64 = st.integers(0, 2**64 - 1)
UINT32 = st.integers(0, 2**32 - 1)
MAYBE = st.none() | FLOAT
ATTEMPTS = st.builds(
    Attempt,
    **dict.fromkeys(("stage", "url", "incarnation", "outcome", "reason", "engine", "task_id"), ANY_TEXT),
    **dict.fromkeys(("number", "transfer_bytes", "batch"), UINT64),
    **dict.fromkeys(("queued_at", "started_at", "waiting", "transfer", "compute", "saving"), FLOAT),
    **dict.fromkeys(("inputs_at", "ended_at"), MAYBE),
)
PACES = st.builds(Pace, stage=ANY_TEXT, step=UINT32, steps=UINT32, steps_per_second=MAYBE, seconds_left=MAYBE)
GENERATIONS = st.builds(
    Generation,
    **dict.fromkeys(("prompt", "negative_prompt"), UTF8_TEXT),
    **dict.fromkeys(("width", "height", "num_frames", "num_inference_steps"), UINT32),
    **dict.fromkeys(("fps", "guidance_scale"), FLOAT),
    seed=UINT64,
)
FILES = st.builds(
    MediaFile, name=UTF8_TEXT, content_type=UTF8_TEXT, bytes=UINT64, fps=FLOAT, frames_checksum=UINT64
)
JOBS = st.builds(
    Job,
    id=st.just(""),
    **dict.fromkeys(("model", "file_url", "owner"), COLUMN_TEXT),
    **dict.fromkeys(("started_at", "completed_at", "deadline"), MAYBE),
    generation=GENERATIONS,
    created_at=FLOAT,
    status=st.sampled_from(Status),
    progress=st.integers(0, 100),
    error=st.none() | st.builds(JobError, code=ANY_TEXT, message=ANY_TEXT),
    file=st.none() | FILES,
    attempts=st.lists(ATTEMPTS, max_size=3),
    pace=st.none() | PACES,
    peak_memory_bytes=UINT64,
    priority=st.integers(-(2**31), 2**31 - 1),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(job=JOBS)
async def test_a_job_comes_back_as_it_was(store: JobStore, job: Job) -> None:
    job.id = Job.new("", Generation()).id
    await store.add(job)
    assert await store.get(job.id) == job
    assert await store.update(job) == []
    assert await store.load() == [job]
    await store.delete([job.id])
    assert await store.get(job.id) is None
    assert await store.load() == []


FIXED = (
    *("id", "model", "generation", "created_at", "priority", "deadline", "owner"),
    *("remixed_from", "idempotency_key", "request_hash"),
)  # of a job, once it was added


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(job=JOBS, later=JOBS)
async def test_all_that_changes_of_a_job_is_written(store: JobStore, job: Job, later: Job) -> None:
    job.id, job.status, job.webhook_url = new_job().id, Status.QUEUED, "https://hooks.example/"
    await store.add(job)
    later = replace(later, **{name: getattr(job, name) for name in FIXED})
    assert await store.update(later) == []
    assert await store.get(job.id) == later


async def test_a_role_that_reports_nan_breaks_nothing(store: JobStore) -> None:
    job = new_job()
    job.attempts = [Attempt("encode", 1, "grpc://h:1", "0", 1.0, 2.0, compute=math.nan, waiting=-math.inf)]
    await store.add(job)
    (found,) = await store.load()
    assert math.isnan(found.attempts[0].compute)
    assert found.attempts[0].waiting == -math.inf


async def test_an_empty_file_and_an_empty_request_are_not_none(store: JobStore) -> None:
    job = Job.new("m", Generation())
    job.file = MediaFile()
    await store.add(job)
    assert await store.load() == [job]


async def test_what_cannot_be_stored_is_an_error_of_that_call_only(store: JobStore) -> None:
    for field, value in (("progress", 2**70), ("created_at", None), ("model", "half a pair \ud800")):
        job = new_job()
        setattr(job, field, value)
        with pytest.raises(StoreError, match="job store"):
            await store.add(job)
    if store.shared:
        with pytest.raises(StoreError, match="NUL"):
            await store.add(Job.new("nul \0", GENERATION))
    job = new_job()
    await store.add(job)
    assert await store.load() == [job]


@pytest.mark.parametrize("job_id", ["", "no such job", "nul \0", "half a pair \ud800", "x" * 5000])
async def test_unknown_ids(store: JobStore, job_id: str) -> None:
    assert await store.get(job_id) is None
    await store.delete([job_id])
    assert await store.update(Job(id="unknown", model="m", generation=GENERATION, created_at=0.0)) == [
        "unknown"
    ]


async def test_order_and_delete(store: JobStore) -> None:
    jobs = [new_job() for _ in range(5)]
    for job in jobs:
        await store.add(job)
    jobs[0].progress = 7
    assert await store.update(jobs[0]) == []  # does not move it
    await store.delete([jobs[2].id, jobs[4].id])
    assert await store.update_many(jobs) == [jobs[2].id, jobs[4].id]  # they stay deleted
    assert await store.load() == [jobs[0], jobs[1], jobs[3]]
    assert await store.update_many([]) == []
    await store.delete([])


async def test_an_id_is_added_once(store: JobStore) -> None:
    job = new_job()
    await store.add(job)
    with pytest.raises(StoreError, match=r"(?i)unique") as caught:
        await store.add(job)
    assert "jobs.sqlite" in str(caught.value) or "test_" in str(caught.value)
    assert "grün" not in str(caught.value)  # nothing of a request gets into the log


async def test_many_jobs_in_one_call(store: JobStore) -> None:
    jobs = [new_job() for _ in range(1201)]  # more than one statement takes
    await asyncio.gather(*(store.add(job) for job in jobs))
    for job in jobs:
        job.progress = 1
    assert await store.update_many(jobs) == []
    assert await store.load() == jobs
    await store.delete([job.id for job in jobs[:1100]])
    assert await store.load() == jobs[1100:]


async def test_a_write_is_of_the_job_at_the_call(store: JobStore) -> None:
    job = new_job()
    adds = [asyncio.create_task(store.add(other)) for other in [job, *(new_job() for _ in range(50))]]
    update = asyncio.create_task(store.update(job))
    await asyncio.sleep(0)  # all have been called; the update waits behind the adds
    job.progress = 50
    await asyncio.gather(*adds)
    assert await update == []
    found = await store.get(job.id)
    assert found is not None and found.progress == 0


async def test_a_finished_job_stays_finished(store: JobStore) -> None:
    job = new_job()
    await store.add(job)
    job.status, job.completed_at = Status.COMPLETED, 1.0
    assert await store.update(job) == []
    assert await store.update(job) == []  # the first answer may have been lost
    for status in (Status.QUEUED, Status.IN_PROGRESS, Status.FAILED):
        job.status = status
        assert await store.update(job) == [job.id]
    (found,) = await store.load()
    assert found.status is Status.COMPLETED


async def test_expired_jobs(store: JobStore) -> None:
    jobs = [new_job() for _ in range(6)]
    for job in jobs:
        await store.add(job)
    for job, completed_at in zip(jobs, (30.0, 10.0, 20.0, 40.0), strict=False):
        job.status, job.completed_at = Status.COMPLETED, completed_at
    jobs[1].status = Status.FAILED
    await store.update_many(jobs)
    assert await store.expired(40.0, 10) == [jobs[1], jobs[2], jobs[0]]
    assert await store.expired(40.0, 2) == [jobs[1], jobs[2]]
    await store.delete([jobs[1].id])
    assert await store.expired(40.0, 2) == [jobs[2], jobs[0]]
    assert await store.expired(10.0, 10) == []


async def test_after_close(store: JobStore) -> None:
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.load()
    await store.close()


CHILD = """
import asyncio, os, signal, sys
from orchestrator.jobs import Job
from orchestrator.store import JobStore
from triptych_proto.control_pb2 import Generation

async def main():
    store = JobStore(sys.argv[1])
    await store.open()
    for number in range(20):
        await store.add(Job(id=str(number), model="m", generation=Generation(seed=2**64 - 1), created_at=0.0))
    print("added", flush=True)
    sys.stdin.read()  # until it is killed

asyncio.run(main())
"""


async def test_what_was_added_survives_a_killed_process(database_url: str) -> None:
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, database_url, cwd=ROOT, **pipes)
    store = JobStore(database_url)
    try:
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), 60) == b"added\n"
        if not store.shared:
            with pytest.raises(StoreError, match=rf"jobs\.sqlite: in use .*process {child.pid}\)"):
                await store.open()
    finally:
        child.kill()
        await child.communicate()
    await store.open()
    jobs = await store.load()
    await store.close()
    assert [job.id for job in jobs] == [str(number) for number in range(20)]
    assert {job.generation.seed for job in jobs} == {2**64 - 1}


async def test_a_row_that_makes_no_sense_is_named(store: JobStore) -> None:
    job = new_job()
    await store.add(job)
    await store._transact(lambda connection: connection.execute(sa.text("UPDATE jobs SET status = 'odd'")))
    with pytest.raises(StoreError, match=f"{job.id}.*odd"):
        await store.load()


@pytest.mark.parametrize(
    "url", ["not a url", "sqlite://h/x", "nosuchdb:///x", "mysql://h/x", "postgresql+asyncpg://h/x"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StoreError, match="database URL"):
        JobStore(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
async def test_a_server_that_is_not_there(scheme: str, tmp_path: Path) -> None:
    store = JobStore(f"{scheme}://user:secret@/jobs?host={tmp_path}")
    assert store.shared
    with pytest.raises(StoreError, match="jobs") as caught:
        await store.open()
    assert "secret" not in str(caught.value)
    await store.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database" * 100)
    store = JobStore(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        await store.open()
    await store.close()


async def test_a_backup_taken_while_the_store_is_in_use(tmp_path: Path) -> None:
    stores = [JobStore(f"sqlite:///{tmp_path}/{name}.sqlite") for name in ("used", "copy")]
    job = new_job()
    await stores[0].open()
    await stores[0].add(job)
    with (
        closing(sqlite3.connect(tmp_path / "used.sqlite")) as used,
        closing(sqlite3.connect(tmp_path / "copy.sqlite")) as copy,
    ):
        used.backup(copy)
    await stores[1].open()
    assert await stores[1].load() == [job]
    for store in stores:
        await store.close()


async def test_in_memory() -> None:
    stores = [JobStore("sqlite://"), JobStore("sqlite:///:memory:")]
    for store in stores:
        await store.open()
        job = new_job()
        await store.add(job)
        assert await store.load() == [job]
    for store in stores:
        await store.close()
