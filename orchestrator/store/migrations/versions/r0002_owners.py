"""Owners, so that several orchestrators can share a database; attempts in the place of phases.

Phases held durations only: attempts cannot be made of them, so jobs of the first release lose them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("phases")
        jobs.add_column(sa.Column("owner", sa.Text, nullable=False, server_default=""))
        jobs.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("deadline", sa.Double))
        jobs.add_column(sa.Column("attempts", json, nullable=False, server_default="[]"))
        jobs.add_column(sa.Column("pace", json))
        jobs.add_column(sa.Column("updated_at", sa.Double, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_index("ix_jobs_completed_at", "jobs", ["completed_at"])
    op.create_index("ix_jobs_updated_at", "jobs", ["updated_at"])
    deleted = sa.text("deleted")
    op.create_index("ix_jobs_deleted", "jobs", ["id"], postgresql_where=deleted, sqlite_where=deleted)
    op.create_table(
        "orchestrators",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("life", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
