"""The job store: what must survive an orchestrator, in SQLite or PostgreSQL."""

from orchestrator.store.errors import StoreError
from orchestrator.store.store import Changes, JobStore

__all__ = ["Changes", "JobStore", "StoreError"]
