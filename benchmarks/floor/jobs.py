"""The jobs of the floor: a row in SQLite for each, as durable as those of Triptych."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


class Jobs:
    """Each call is a transaction, and returns when it is committed."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)  # every statement commits
        # As orchestrator/store/database.py has it: a commit survives the death of this process.
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute(
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT NOT NULL, request TEXT NOT NULL,"
            " created_at REAL NOT NULL, completed_at REAL, file TEXT) WITHOUT ROWID"
        )

    def add(self, job: str, request: str) -> None:
        self.connection.execute(
            "INSERT INTO jobs VALUES (?, 'queued', ?, ?, NULL, NULL)", (job, request, time.time())
        )

    def complete(self, job: str, file: str) -> None:
        self.connection.execute(
            "UPDATE jobs SET status = 'completed', completed_at = ?, file = ? WHERE id = ?",
            (time.time(), file, job),
        )

    def close(self) -> None:
        self.connection.close()
