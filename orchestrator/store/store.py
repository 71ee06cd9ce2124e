"""The job store's interface: jobs by id, and which orchestrator owns them.

All statements run on one thread, in the order of their calls. A call returns when its transaction is
committed. With SQLite that is write-ahead logging with ``synchronous=NORMAL``: a commit has reached the
operating system, so it survives a crash of this process at any moment; a power cut may take the last
commits but never leaves a broken file. With PostgreSQL a commit is as durable as that server makes it.

What a job's row must tell a running system is kept in memory by its owner, so the store is read only at
start-up and to follow other orchestrators.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from orchestrator.jobs import Job, Status
from orchestrator.store import rows
from orchestrator.store.database import Database
from orchestrator.store.errors import StoreError
from orchestrator.store.migrate import migrate
from orchestrator.store.statements import ADD, ALIVE, FINAL, UNFINISHED, WRITE, batches, lock, read
from orchestrator.store.tables import clock, identity, jobs, orchestrators, reference_images

OVERLAP_SECONDS = 10.0  # longer than a write takes from reading the clock to its commit
KEEP_DELETED_SECONDS = 600.0  # for other orchestrators to notice
TAKE_OVER_LOCK = 0x74616B656F766572  # "takeover": one at a time looks for jobs of the dead

T = TypeVar("T")
_FAILURES = (SQLAlchemyError, StoreError, OSError, OverflowError, UnicodeError)


@dataclass(frozen=True)
class Changes:
    """What was written to the store since a moment."""

    jobs: list[Job]  # oldest first; some may have been reported before
    deleted_ids: list[str]
    now: float  # the moment to ask from next time, on the database's clock
    complete: bool  # jobs are all there are: whatever else the caller knows is deleted


class JobStore:
    """Jobs by id. ``open`` comes first, ``close`` last. Every call may raise StoreError."""

    def __init__(self, database_url: str) -> None:
        """Raises StoreError for a URL that is none or whose driver is not installed."""
        self._database = Database(database_url)
        self._engine = self._database.engine
        self._lives: dict[str, str] = {}  # by owner: as whom this process last beat
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job-store")
        self._closed = False

    @property
    def shared(self) -> bool:
        """Whether other orchestrators may use it at the same time."""
        return self._database.shared

    async def open(self) -> None:
        """Brings the schema to the newest. Raises StoreError for a schema of a newer release, and for a
        SQLite file that another process has open.
        """

        def open_() -> None:
            try:
                self._database.lock()
                with self._engine.begin() as connection:
                    migrate(connection)
            except BaseException:
                self._database.close()
                raise

        await self._run(open_)

    async def identity(self) -> str:
        """Of this database, and of what a backup of it is restored to: 32 hexadecimal digits."""
        return await self._transact(lambda connection: str(connection.scalar(sa.select(identity.c.id))))

    async def close(self) -> None:
        """Returns when all that was asked for before is done."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
            self._thread.shutdown()

    # ---- jobs

    async def add(self, job: Job, images: Sequence[bytes] = ()) -> Job:
        """Returns it or, where there is one, the earlier job of the same idempotency key: then that one stays
        the only one, also when several orchestrators are asked at once. StoreError if its id is taken.

        ``images`` are its reference images, in order. They go when the job fails or is deleted.
        """
        row = rows.row(job)

        def add(connection: sa.Connection) -> Job:
            if connection.execute(ADD[self.shared], row).scalar() is not None:
                for position, data in enumerate(images):
                    values = {"job_id": job.id, "position": position, "data": data}
                    connection.execute(sa.insert(reference_images), values)
                return job
            earlier = read(connection, jobs.c.idempotency_key == job.idempotency_key)
            if not earlier:
                raise StoreError(f"the job of {job.id}'s idempotency key was deleted at this moment")
            return earlier[0]

        return await self._transact(add)

    async def update(self, job: Job) -> list[str]:
        """``update_many`` for one."""
        return await self.update_many([job])

    async def update_many(self, changed: Sequence[Job]) -> list[str]:
        """Writes all of these jobs, as they are at the call, in one transaction: what can change of them.

        Returns the ids of those that were not written, because they are not its owner's to write any more:
        another orchestrator has taken them, or the owner's name; they are finished; they are deleted.
        """
        new = {job.id: rows.changing(job) for job in changed}
        owners = {job.id: job.owner for job in changed}
        return await self._transact(lambda connection: self._write(connection, new, owners))

    async def get(self, job_id: str) -> Job | None:
        if not job_id.isprintable():  # nor can PostgreSQL be asked for every string
            return None
        found = await self._transact(
            lambda connection: read(connection, jobs.c.id == job_id, ~jobs.c.deleted)
        )
        return found[0] if found else None

    async def get_many(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of them that there are."""

        def find(connection: sa.Connection) -> list[Job]:
            found = (read(connection, jobs.c.id.in_(batch), ~jobs.c.deleted) for batch in batches(job_ids))
            return [job for batch in found for job in batch]

        return await self._transact(find)

    async def find_by_key(self, idempotency_key: str) -> Job | None:
        found = await self._transact(
            lambda connection: read(connection, jobs.c.idempotency_key == idempotency_key)
        )
        return found[0] if found else None

    async def load(self) -> list[Job]:
        """All jobs, oldest first."""
        return await self._transact(lambda connection: read(connection, ~jobs.c.deleted))

    async def images(self, job_ids: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
        """The reference images of those of the jobs that have any."""
        column = reference_images.c.job_id

        def owners(connection: sa.Connection) -> list[str]:
            queries = (sa.select(column).where(column.in_(batch)).distinct() for batch in batches(job_ids))
            return [job_id for query in queries for job_id in connection.execute(query).scalars()]

        def images(connection: sa.Connection, job_id: str) -> tuple[bytes, ...]:
            query = sa.select(reference_images.c.data).where(column == job_id)
            return tuple(connection.execute(query.order_by(reference_images.c.position)).scalars())

        found = await self._transact(owners)
        return {job_id: await self._transact(partial(images, job_id=job_id)) for job_id in found}

    async def expired(self, before: float, limit: int) -> list[Job]:
        """Up to ``limit`` jobs that were over before that time, in seconds since the epoch; oldest first."""
        query = (
            sa.select(jobs)
            .where(jobs.c.completed_at < before, jobs.c.status.in_(FINAL), ~jobs.c.deleted)
            .order_by(jobs.c.completed_at, jobs.c.sequence)
            .limit(limit)
        )
        return await self._transact(lambda c: [rows.job(row) for row in c.execute(query).mappings()])

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Whoever owns them. In a shared store the rows stay for a time, emptied, for others to notice."""
        ids = sorted(job_id for job_id in job_ids if job_id.isprintable())

        def delete(connection: sa.Connection) -> None:
            for batch in batches(ids):
                these = jobs.c.id.in_(batch)
                connection.execute(sa.delete(reference_images).where(reference_images.c.job_id.in_(batch)))
                if not self.shared:
                    connection.execute(sa.delete(jobs).where(these))
                    continue
                lock(connection, batch)
                mark = sa.update(jobs).where(these, ~jobs.c.deleted).values(deleted=True, updated_at=clock())
                mark = mark.values(generation={}, attempts=[], file=None, error=None, pace=None)
                connection.execute(mark.values(idempotency_key=None))  # free for another job

        await self._transact(delete)

    async def changes(self, since: float | None) -> Changes:
        """What anybody, this process too, has written since ``now`` of an earlier answer.

        All there is when ``since`` is None, and when it is not known any more what was deleted since.
        """

        def compare(connection: sa.Connection) -> Changes:
            now = connection.execute(sa.select(clock())).scalar_one()
            if since is None or not now - KEEP_DELETED_SECONDS < since <= now:
                return Changes(read(connection, ~jobs.c.deleted), [], now, complete=True)
            query = sa.select(jobs).where(jobs.c.updated_at > since - OVERLAP_SECONDS)
            found = connection.execute(query.order_by(jobs.c.sequence)).mappings().all()
            return Changes(
                [rows.job(row) for row in found if not row["deleted"]],
                [row["id"] for row in found if row["deleted"]],
                now,
                complete=False,
            )

        return await self._transact(compare)

    # ---- orchestrators

    async def beat(self, owner: str, life: str) -> bool:
        """Says that the orchestrator of this name lives. ``life`` is a process's own: its first beat takes
        the name. False when another life has taken it since; then this one must stop.
        """
        if not owner or not owner.isprintable():
            raise StoreError(f"{owner!r} cannot be an orchestrator's name")

        def beat() -> bool:
            mine = None if self._lives.get(owner) != life else orchestrators.c.life == life
            values = {"life": life, "seen_at": clock()}
            insert = postgresql.insert if self.shared else sqlite.insert
            put = insert(orchestrators).values(name=owner, **values)
            with self._engine.begin() as connection:
                put = put.on_conflict_do_update(index_elements=["name"], set_=values, where=mine)
                done = connection.execute(put, execution_options={"preserve_rowcount": True})
                alive = done.rowcount == 1
            if alive:
                self._lives[owner] = life
            return alive

        return await self._run(beat)

    async def take_over(
        self, owner: str, silent_seconds: float, known: Collection[str] = frozenset()
    ) -> list[Job]:
        """Gives ``owner`` all unfinished jobs of no owner and of owners that have not beaten for so long.

        Returns, oldest first, all unfinished jobs that are now its own: those it had before too, but for the
        ``known`` ones. Each job goes to one taker, however many ask at once. Raises StoreError for an owner
        that has not beaten, or whose name another process has taken.
        """
        skip = frozenset(known)

        def take(connection: sa.Connection) -> list[Job]:
            if self.shared:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TAKE_OVER_LOCK)))
            if not connection.execute(sa.select(self._alive(owner))).scalar_one():
                raise StoreError(f"{owner} is not, or no longer, the name of this orchestrator")
            seen_after = clock() - silent_seconds
            # Its own row stays, whatever its age: it is here.
            gone = (orchestrators.c.name != owner) & (orchestrators.c.seen_at <= seen_after)
            connection.execute(sa.delete(orchestrators).where(gone))
            connection.execute(
                sa.delete(jobs).where(jobs.c.deleted, jobs.c.updated_at < clock() - KEEP_DELETED_SECONDS)
            )
            others = sa.select(orchestrators.c.name).where(orchestrators.c.name != owner)
            free = sa.select(jobs.c.id, jobs.c.owner).where(UNFINISHED, jobs.c.owner.not_in(others))
            found = connection.execute(free.order_by(jobs.c.id)).all()
            taken: list[sa.RowMapping] = []
            wanted = [job_id for job_id, before in found if before != owner or job_id not in skip]
            for batch in batches(wanted):
                lock(connection, batch)
                these = jobs.c.id.in_(batch) & UNFINISHED
                change = sa.update(jobs).where(these, jobs.c.owner != owner)
                connection.execute(change.values(owner=owner, updated_at=clock()))
                taken += connection.execute(sa.select(jobs).where(these)).mappings()
            return [rows.job(row) for row in sorted(taken, key=lambda row: row["sequence"])]

        return await self._transact(take)

    async def leave(self, owner: str) -> None:
        """A clean stop: others may take over at once. What this process writes afterwards is refused."""
        await self._transact(
            lambda connection: connection.execute(
                sa.delete(orchestrators).where(orchestrators.c.name == owner, self._alive(owner))
            )
        )

    # ---- inside

    def _alive(self, owner: str) -> sa.ColumnElement[bool]:
        """Whether the owner's name still belongs to the life that this process beats for, if it does."""
        row = sa.select(orchestrators.c.name).where(orchestrators.c.name == owner)
        life = self._lives.get(owner)
        return row.where(orchestrators.c.life == life).exists() if life is not None else sa.false()

    def _write(
        self, connection: sa.Connection, new: Mapping[str, dict[str, Any]], owners: Mapping[str, str]
    ) -> list[str]:
        found = [row for batch in batches(sorted(new)) for row in lock(connection, batch)]
        # After the locks: another life that takes the name later reads these rows only when they are written.
        gone = {
            owner
            for owner in set(owners.values()) & self._lives.keys()
            if not connection.scalar(ALIVE, {"owner": owner, "life": self._lives[owner]})
        }
        writable = {
            row["id"]
            for row in found
            if row["owner"] == owners[row["id"]] not in gone
            and not row["deleted"]
            and (row["status"] not in FINAL or row["status"] == new[row["id"]]["status"])
        }
        if writable:
            connection.execute(WRITE, [{**new[job_id], "key": job_id} for job_id in sorted(writable)])
            failed = [job_id for job_id in writable if new[job_id]["status"] == Status.FAILED.value]
            for batch in batches(failed):
                connection.execute(sa.delete(reference_images).where(reference_images.c.job_id.in_(batch)))
        return [job_id for job_id in new if job_id not in writable]

    async def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        def transact() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return await self._run(transact)

    async def _run(self, function: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"job store {self._database.name} is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except _FAILURES as error:
            reason = error.orig if isinstance(error, DBAPIError) else error  # without the statement
            raise StoreError(f"job store {self._database.name}: {reason}") from error
