"""Pieces of SQL that the store's calls are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from orchestrator.jobs import Job, Status
from orchestrator.store import rows
from orchestrator.store.tables import jobs

BATCH = 500  # ids in one statement
FINAL = [status.value for status in Status if status.final]
UNFINISHED = jobs.c.status.in_([status.value for status in Status if not status.final]) & ~jobs.c.deleted


def read(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Job]:
    """The jobs of which these hold, oldest first."""
    query = sa.select(jobs).where(*conditions).order_by(jobs.c.sequence)
    return [rows.job(row) for row in connection.execute(query).mappings()]


def lock(connection: sa.Connection, job_ids: Sequence[str]) -> Sequence[sa.RowMapping]:
    """Until the transaction ends nobody else writes these rows. In the order of ids: no deadlocks."""
    query = sa.select(jobs.c.id, jobs.c.owner, jobs.c.status, jobs.c.deleted).where(jobs.c.id.in_(job_ids))
    return connection.execute(query.order_by(jobs.c.id).with_for_update()).mappings().all()


def batches(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (job_ids[start : start + BATCH] for start in range(0, len(job_ids), BATCH))
