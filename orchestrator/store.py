"""The job store: what must survive this process, in SQLite or PostgreSQL.

All statements run on one thread, in the order of their calls. A call returns when its transaction is
committed. With SQLite that is write-ahead logging with ``synchronous=NORMAL``: a commit has reached the
operating system, so it survives a crash of this process at any moment; a power cut may take the last
commits but never leaves a broken file. What a job's row must tell a running system is kept in memory by its
owner; the store is only read at start-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf import json_format
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.jobs import Job, JobError, Phase, Status
from triptych_proto.control_pb2 import Generation, MediaFile

SCHEMA_VERSION = 1
BUSY_SECONDS = 5  # how long a statement waits for another process's lock on the file

T = TypeVar("T")
_JSON = sa.JSON(none_as_null=True)

_metadata = sa.MetaData()
_version = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, nullable=False))
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),  # the order of adding
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("progress", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("peak_memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("file_url", sa.Text, nullable=False),
    sa.Column("generation", _JSON, nullable=False),
    sa.Column("file", _JSON),
    sa.Column("error", _JSON),
    sa.Column("phases", _JSON, nullable=False),
)


class StoreError(Exception):
    """The store cannot be opened, read or written; the message names it."""


class JobStore:
    """Jobs by id. ``open`` comes first, ``close`` last."""

    def __init__(self, database_url: str) -> None:
        """Raises StoreError for a URL that is none or whose driver is not installed."""
        try:
            self._engine = _create_engine(sa.make_url(database_url))
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"job store: cannot use the database URL: {error}") from error
        self._name = self._engine.url.render_as_string(hide_password=True)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job-store")

    async def open(self) -> None:
        """Creates the schema if there is none. Raises StoreError for a schema of a newer release."""
        await self._run(self._create_schema)

    async def add(self, job: Job) -> None:
        """Raises StoreError if there is a job of that id."""
        row = _row(job)
        await self._execute(sa.insert(_jobs).values(row))

    async def update(self, job: Job) -> None:
        """Writes all of the job as it is at the call. A job that is not there stays so."""
        row = _row(job)
        await self._execute(sa.update(_jobs).where(_jobs.c.id == job.id).values(row))

    async def delete(self, job_id: str) -> None:
        await self._execute(sa.delete(_jobs).where(_jobs.c.id == job_id))

    async def load(self) -> list[Job]:
        """All jobs, oldest first."""

        def read() -> list[Job]:
            with self._engine.connect() as connection:
                rows = connection.execute(sa.select(_jobs).order_by(_jobs.c.sequence))
                return [_job(row) for row in rows.mappings()]

        return await self._run(read)

    async def close(self) -> None:
        """Returns when all that was asked for before is done."""
        await self._run(self._engine.dispose)
        self._thread.shutdown()

    async def _execute(self, statement: sa.Executable) -> None:
        def write() -> None:
            with self._engine.begin() as connection:
                connection.execute(statement)

        await self._run(write)

    async def _run(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"job store {self._name}: {error}") from error

    def _create_schema(self) -> None:
        with self._engine.begin() as connection:
            if not sa.inspect(connection).has_table(_version.name):
                _metadata.create_all(connection)
                connection.execute(sa.insert(_version).values(version=SCHEMA_VERSION))
            version = connection.execute(sa.select(_version.c.version)).scalar_one()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"job store {self._name} has schema version {version}, made by a newer release; "
                f"this one knows versions up to {SCHEMA_VERSION}"
            )


def _create_engine(url: sa.URL) -> sa.Engine:
    """All that is particular to a database is here."""
    if url.get_backend_name() != "sqlite":
        # A connection may have died since its last use: it is tried first.
        return sa.create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _row(job: Job) -> dict[str, Any]:
    """A copy of the job's values at this moment: the job goes on changing while the thread writes."""
    return {
        "id": job.id,
        "model": job.model,
        "status": job.status.value,
        "progress": job.progress,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "peak_memory_bytes": job.peak_memory_bytes,
        "file_url": job.file_url,
        "generation": json_format.MessageToDict(job.generation, preserving_proto_field_name=True),
        "file": job.file and json_format.MessageToDict(job.file, preserving_proto_field_name=True),
        "error": job.error and asdict(job.error),
        "phases": [asdict(phase) for phase in job.phases],
    }


def _job(row: sa.RowMapping) -> Job:
    values = {name: row[name] for name in row if name != "sequence"}
    return Job(
        **{
            **values,
            "status": Status(row["status"]),
            "generation": json_format.ParseDict(row["generation"], Generation()),
            "file": row["file"] and json_format.ParseDict(row["file"], MediaFile()),
            "error": row["error"] and JobError(**row["error"]),
            "phases": [Phase(**phase) for phase in row["phases"]],
        }
    )
