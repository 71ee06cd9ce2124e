"""Brings a database to the newest schema, with alembic and the revisions in ``migrations/versions``."""

from __future__ import annotations

import logging
import threading

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from orchestrator.store.errors import StoreError

log = logging.getLogger(__name__)

WAIT_SECONDS = 300  # for another orchestrator that migrates, and for a migration's own statements
ADVISORY_LOCK = 0x7472697074796368  # "triptych": held while one migrates a PostgreSQL database
FIRST_REVISION = "0001"
UNVERSIONED = "schema_version"  # the table of the release before alembic, of which there was version 1 only

_ALEMBIC = threading.Lock()  # its context is one for the whole process
logging.getLogger("alembic.runtime").setLevel(logging.WARNING)  # it tells every step


def migrate(connection: sa.Connection) -> None:
    """Works in the caller's transaction: all or nothing. Raises StoreError for a newer release's schema."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "orchestrator.store:migrations")
    with _ALEMBIC:
        if connection.dialect.name == "postgresql":
            for limit in ("lock_timeout", "statement_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {limit} = '{WAIT_SECONDS}s'")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        try:
            _upgrade(connection, config)
        except CommandError as error:
            raise StoreError(f"its schema cannot be migrated: {error}") from error


def _upgrade(connection: sa.Connection, config: Config) -> None:
    script = ScriptDirectory.from_config(config)
    newest = script.get_current_head()
    if sa.inspect(connection).has_table(UNVERSIONED):
        version = connection.exec_driver_sql(f"SELECT version FROM {UNVERSIONED}").scalar_one()
        if version != 1:
            raise _too_new(version, newest)
        command.stamp(config, FIRST_REVISION)
        connection.exec_driver_sql(f"DROP TABLE {UNVERSIONED}")
    found = MigrationContext.configure(connection).get_current_revision()
    if found == newest:
        return
    if found not in {None, *(revision.revision for revision in script.walk_revisions())}:
        raise _too_new(found, newest)
    command.upgrade(config, "head")
    if found is not None:
        log.info("the job store's schema is migrated from %s to %s", found, newest)


def _too_new(found: object, newest: str | None) -> StoreError:
    return StoreError(f"its schema {found} was made by a newer release; this one knows up to {newest}")
