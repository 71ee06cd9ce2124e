"""Idempotency keys, each of one job at most; which job a remix was made from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("remixed_from", sa.String(64)))
        jobs.add_column(sa.Column("idempotency_key", sa.String(64)))
        jobs.add_column(sa.Column("request_hash", sa.String(64)))
    op.create_index("ix_jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)
