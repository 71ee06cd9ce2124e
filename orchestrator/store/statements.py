"""Pieces of SQL that the store's calls are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.jobs import Job, Status
from orchestrator.store import rows
from orchestrator.store.tables import clock, jobs, orchestrators

BATCH = 500  # ids in one statement
FINAL = [status.value for status in Status if status.final]
UNFINISHED = jobs.c.status.in_([status.value for status in Status if not status.final]) & ~jobs.c.deleted

# Those that every job needs are made once: to put one together, and to find it in SQLAlchemy's cache of
# compiled statements, takes longer than to execute it.
_LOCK = (
    sa.select(jobs.c.id, jobs.c.owner, jobs.c.status, jobs.c.deleted)
    .where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(jobs.c.id)
    .with_for_update()
)
WRITE = sa.update(jobs).where(jobs.c.id == sa.bindparam("key")).values(updated_at=clock())
# Whether a name still belongs to a life.
ALIVE = sa.select(
    sa.select(orchestrators.c.name)
    .where(orchestrators.c.name == sa.bindparam("owner"), orchestrators.c.life == sa.bindparam("life"))
    .exists()
)
ADD = {
    # Whether the database is shared: nothing happens where a job of the same idempotency key is there.
    shared: insert(jobs)
    .values(updated_at=clock(), deleted=False)
    .on_conflict_do_nothing(index_elements=["idempotency_key"])
    .returning(jobs.c.id)
    for shared, insert in ((True, postgresql.insert), (False, sqlite.insert))
}


def read(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Job]:
    """The jobs of which these hold, oldest first."""
    query = sa.select(jobs).where(*conditions).order_by(jobs.c.sequence)
    return [rows.job(row) for row in connection.execute(query).mappings()]


def lock(connection: sa.Connection, job_ids: Sequence[str]) -> Sequence[sa.RowMapping]:
    """Until the transaction ends nobody else writes these rows. In the order of ids: no deadlocks."""
    return connection.execute(_LOCK, {"ids": job_ids}).mappings().all()


def batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (job_ids[start : start + BATCH] for start in range(0, len(job_ids), BATCH))
