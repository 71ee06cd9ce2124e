"""One database and all that is particular to its kind: URL, driver, limits, who else may use it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.store.errors import StoreError

BUSY_SECONDS = 5  # how long a statement waits for a lock, on rows or on a SQLite file
POSTGRESQL = "postgresql+psycopg"
# For libpq, where the URL does not say otherwise. A server that is gone without a word is noticed.
LIMITS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "options": f"-c lock_timeout={BUSY_SECONDS}s -c statement_timeout=30s"
    " -c idle_in_transaction_session_timeout=30s",
    "fallback_application_name": "triptych",
}


class Database:
    """An engine with one connection, for use by one thread."""

    def __init__(self, url: str) -> None:
        """Raises StoreError for a URL that is none, of another kind, or whose driver is not installed."""
        try:
            parsed = _normal(sa.make_url(url))
            self.shared = parsed.get_backend_name() == "postgresql"
            self.engine = _postgresql(parsed) if self.shared else _sqlite(parsed)
        except (SQLAlchemyError, TypeError, ValueError) as error:
            raise StoreError(f"job store: cannot use the database URL: {error}") from error
        except ImportError as error:
            raise StoreError(
                f"job store: cannot use the database URL: {error}; is triptych[postgresql] installed?"
            ) from error
        self.name = self.engine.url.render_as_string(hide_password=True)
        self._lock: int | None = None

    def lock(self) -> None:
        """Keeps other processes from the same SQLite file, until ``close`` or the end of this process."""
        if self.shared or self._lock is not None:
            return
        with self.engine.connect() as connection:
            file = connection.exec_driver_sql("PRAGMA database_list").one()[2]
        if not file:  # in memory
            return
        lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StoreError(
                f"in use by another orchestrator (process {holder or 'unknown'}); a SQLite file serves one,"
                " several share a PostgreSQL database"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def close(self) -> None:
        self.engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _normal(url: sa.URL) -> sa.URL:
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=POSTGRESQL)
    if url.drivername not in ("sqlite", "sqlite+pysqlite", POSTGRESQL):
        raise ValueError(f"{url.drivername}: expected sqlite or postgresql")
    return url


def _postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,  # the connection may have died since its last use
        isolation_level="READ COMMITTED",  # a statement sees what was committed while it waited for a lock
        hide_parameters=True,
        connect_args={name: value for name, value in LIMITS.items() if name not in url.query},
    )


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database and not url.database.startswith("file:"):
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own transactions would leave out reads and DDL
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
