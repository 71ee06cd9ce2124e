"""Databases of every earlier release come up to the newest schema; those of a newer one are left alone."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orchestrator.jobs import Job, JobError, Status
from orchestrator.store import JobStore, StoreError
from orchestrator.store.database import Database
from orchestrator.store.migrations import versions
from orchestrator.store.tables import metadata
from triptych_proto.control_pb2 import Generation, MediaFile

NEWEST = max(path.name[1:5] for path in Path(versions.__path__[0]).glob("r[0-9]*.py"))
# What the release before alembic created, word for word.
FIRST_SQLITE = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE jobs (
    sequence INTEGER NOT NULL, id VARCHAR(64) NOT NULL, model TEXT NOT NULL, status VARCHAR(16) NOT NULL,
    progress INTEGER NOT NULL, created_at DOUBLE NOT NULL, started_at DOUBLE, completed_at DOUBLE,
    peak_memory_bytes BIGINT NOT NULL, file_url TEXT NOT NULL, generation JSON NOT NULL, file JSON,
    error JSON, phases JSON NOT NULL, PRIMARY KEY (sequence), UNIQUE (id)
);
INSERT INTO schema_version (version) VALUES (1)
"""
FIRST_POSTGRESQL = FIRST_SQLITE.replace("sequence INTEGER", "sequence SERIAL").replace(
    "DOUBLE", "DOUBLE PRECISION"
)
INSERT = """
INSERT INTO jobs (id, model, status, progress, created_at, started_at, completed_at, peak_memory_bytes,
    file_url, generation, file, error, phases)
VALUES (:id, 'm', :status, 7, 1.5, 2.5, :completed_at, 4096, :file_url, :generation, :file, :error, :phases)
"""
GENERATION = {"prompt": "grün", "width": 64, "seed": "18446744073709551615"}
FILE = {"name": "a.mp4", "bytes": "9223372036854775809"}
ERROR = {"code": "c", "message": "why"}
PHASES = [{"name": "encode", "seconds": 0.5, "url": "grpc://h:1"}]


def run(url: str, *statements: str) -> None:
    database = Database(url)
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    database.close()


def first_release(url: str) -> list[Job]:
    """Makes such a database; the jobs as they must come out of it."""
    sqlite = url.startswith("sqlite")
    run(url, *(FIRST_SQLITE if sqlite else FIRST_POSTGRESQL).split(";"))
    generation = Generation(prompt="grün", width=64, seed=2**64 - 1)
    common = {"model": "m", "generation": generation, "created_at": 1.5, "started_at": 2.5, "progress": 7}
    jobs = [
        Job(id="waits", status=Status.QUEUED, **common),
        Job(id="runs", status=Status.IN_PROGRESS, **common),
        Job(id="failed", status=Status.FAILED, completed_at=3.5, error=JobError("c", "why"), **common),
        Job(
            id="done",
            status=Status.COMPLETED,
            completed_at=4.5,
            file=MediaFile(name="a.mp4", bytes=2**63 + 1),
            file_url="grpc://h:1",
            **common,
        ),
    ]
    database = Database(url)
    with database.engine.begin() as connection:
        for job in jobs:
            job.peak_memory_bytes = 4096
            values = {
                "id": job.id,
                "status": job.status.value,
                "completed_at": job.completed_at,
                "file_url": job.file_url,
                "generation": json.dumps(GENERATION),
                "file": json.dumps(FILE) if job.file else None,
                "error": json.dumps(ERROR) if job.error else None,
                "phases": json.dumps(PHASES),
            }
            connection.execute(sa.text(INSERT), values)
    database.close()
    return jobs


def differences(url: str) -> list[object]:
    database = Database(url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, metadata)
    database.close()
    return found


async def test_a_fresh_database_has_the_tables_that_the_code_uses(database_url: str) -> None:
    store = JobStore(database_url)
    await store.open()
    await store.close()
    assert differences(database_url) == []


async def test_the_first_release_s_jobs_survive(
    database_url: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    jobs = first_release(database_url)
    for _ in range(2):
        store = JobStore(database_url)
        await store.open()
        assert await store.load() == jobs
        assert (await store.changes(None)).jobs == jobs
        await store.beat("a", "1")
        taken = await store.take_over("a", 1.0)
        for job in jobs[:2]:
            job.owner = "a"
        assert taken == jobs[:2]
        assert await store.update_many(jobs) == []
        with pytest.raises(StoreError, match=r"(?i)unique"):
            await store.add(jobs[3])
        await store.close()
    added = Job.new("m", Generation())
    store = JobStore(database_url)
    await store.open()
    await store.add(added)
    assert await store.load() == [*jobs, added]
    await store.close()
    assert [record.message for record in caplog.records] == [
        f"the job store's schema is migrated from 0001 to {NEWEST}"
    ]
    assert capsys.readouterr() == ("", "")
    assert differences(database_url) == []


async def test_several_migrate_at_once(postgres_url: str) -> None:
    jobs = first_release(postgres_url)
    stores = [JobStore(postgres_url) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        assert await store.load() == jobs
        await store.close()


@pytest.mark.parametrize("statement", ["UPDATE schema_version SET version = 2", None])
async def test_a_newer_schema_is_refused_and_left_as_it_is(database_url: str, statement: str | None) -> None:
    store = JobStore(database_url)
    if statement is None:
        await store.open()
        await store.close()
        run(database_url, "UPDATE alembic_version SET version_num = '9999'")
        version = "9999"
    else:
        first_release(database_url)
        run(database_url, statement)
        version = "2"
    newer = JobStore(database_url)
    with pytest.raises(StoreError, match=f"schema {version} was made by a newer release.* up to {NEWEST}"):
        await newer.open()
    await newer.close()
    run(database_url, "SELECT id FROM jobs")


async def test_a_migration_that_fails_changes_nothing(database_url: str) -> None:
    first_release(database_url)
    run(database_url, "CREATE TABLE orchestrators (mine INTEGER)")  # in the way
    for _ in range(2):
        store = JobStore(database_url)
        with pytest.raises(StoreError, match="orchestrators"):
            await store.open()
        await store.close()
    run(
        database_url,
        "SELECT phases FROM jobs",
        "SELECT version FROM schema_version",
        "DROP TABLE orchestrators",
    )
    store = JobStore(database_url)
    await store.open()
    assert len(await store.load()) == 4
    await store.close()
