"""The job store's tables, as the newest migration leaves them. A test compares the two."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_JSON = sa.JSON(none_as_null=True)


class Unsigned64(sa.TypeDecorator[int]):
    """0 to 2**64 - 1 in a signed column: the upper half is stored as negative numbers."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return value - 2**64 if value is not None and value >= 2**63 else value

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else value % 2**64


class clock(FunctionElement[float]):
    """The database's clock at this moment, in seconds since the epoch."""

    type = sa.Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),  # the order of adding
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("progress", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double, index=True),
    sa.Column("deadline", sa.Double),
    sa.Column("peak_memory_bytes", Unsigned64, nullable=False),
    sa.Column("file_url", sa.Text, nullable=False),
    sa.Column("generation", _JSON, nullable=False),
    sa.Column("file", _JSON),
    sa.Column("error", _JSON),
    sa.Column("attempts", _JSON, nullable=False),
    sa.Column("pace", _JSON),
    sa.Column("remixed_from", sa.String(64)),
    sa.Column("idempotency_key", sa.String(64), index=True, unique=True),
    sa.Column("request_hash", sa.String(64)),
    sa.Column("webhook_url", sa.Text),
    sa.Column("updated_at", sa.Double, nullable=False, index=True),
    sa.Column("deleted", sa.Boolean, nullable=False),  # kept for a while, for other orchestrators to see
)
sa.Index("ix_jobs_deleted", jobs.c.id, postgresql_where=jobs.c.deleted, sqlite_where=jobs.c.deleted)

reference_images = sa.Table(
    "reference_images",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),  # among the job's, from 0
    sa.Column("data", sa.LargeBinary, nullable=False),  # the file as it came
)

identity = sa.Table("identity", metadata, sa.Column("id", sa.String(32), primary_key=True))  # one row

orchestrators = sa.Table(
    "orchestrators",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("life", sa.Text, nullable=False),  # of the process that has the name now
    sa.Column("seen_at", sa.Double, nullable=False),
)
