"""Jobs, as the first release stored them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    json = sa.JSON(none_as_null=True)
    op.create_table(
        "jobs",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("completed_at", sa.Double),
        sa.Column("peak_memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("file_url", sa.Text, nullable=False),
        sa.Column("generation", json, nullable=False),
        sa.Column("file", json),
        sa.Column("error", json),
        sa.Column("phases", json, nullable=False),
    )
