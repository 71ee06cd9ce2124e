"""Several orchestrators on one database: who owns a job, who lives, what the others wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
import sqlalchemy as sa

from orchestrator.jobs import Job, Status
from orchestrator.store import JobStore, StoreError
from orchestrator.store.store import KEEP_DELETED_SECONDS
from triptych_proto.control_pb2 import Generation

SILENT = 10.0


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[list[JobStore]]:
    stores = [JobStore(postgres_url) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))  # all at once, on an empty database
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(database_url)
    await store.open()
    yield store
    await store.close()


def new_job(owner: str) -> Job:
    job = Job.new("m", Generation(prompt="p"))
    job.owner = owner
    return job


async def execute(store: JobStore, statement: str) -> None:
    await store._transact(lambda connection: connection.execute(sa.text(statement)))


async def silence(store: JobStore, owner: str) -> None:
    await execute(store, f"UPDATE orchestrators SET seen_at = seen_at - {SILENT + 1} WHERE name = '{owner}'")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# ---- of both kinds


async def test_a_restarted_orchestrator_gets_back_its_own_unfinished_jobs(store: JobStore) -> None:
    jobs = [new_job("a") for _ in range(4)]
    for job in jobs:
        await store.add(job)
    jobs[1].status = Status.IN_PROGRESS
    jobs[2].status, jobs[2].completed_at = Status.FAILED, 1.0
    assert await store.update_many(jobs) == []
    await store.delete([jobs[3].id])
    assert await store.beat("a", "first life")
    assert await store.take_over("a", SILENT) == [jobs[0], jobs[1]]
    assert await store.take_over("a", SILENT, known={jobs[0].id}) == [jobs[1]]


async def test_jobs_of_nobody_and_of_unknown_owners_are_taken(store: JobStore) -> None:
    jobs = [new_job(""), new_job("gone")]
    for job in jobs:
        await store.add(job)
    await store.beat("a", "1")
    taken = await store.take_over("a", SILENT, known={job.id for job in jobs})
    for job in jobs:
        job.owner = "a"
    assert taken == jobs


async def test_with_no_patience_every_other_owner_is_dead(store: JobStore) -> None:
    await store.add(new_job("b"))
    await store.beat("b", "1")
    await store.beat("a", "1")
    assert await store.take_over("a", SILENT) == []
    await silence(store, "b")
    assert [job.owner for job in await store.take_over("a", 0.0)] == ["a"]


async def test_who_has_not_beaten_takes_nothing(store: JobStore) -> None:
    await store.add(new_job(""))
    with pytest.raises(StoreError, match="b is not"):
        await store.take_over("b", SILENT)
    await store.leave("b")  # nor does it have to leave


@pytest.mark.parametrize("name", ["", "nul \0", "half a pair \ud800"])
async def test_a_name_that_is_none(store: JobStore, name: str) -> None:
    with pytest.raises(StoreError, match="name"):
        await store.beat(name, "1")


async def test_changes(store: JobStore) -> None:
    first, second = new_job("a"), new_job("a")
    await store.add(first)
    changes = await store.changes(None)
    assert (changes.jobs, changes.deleted_ids, changes.complete) == ([first], [], True)
    await store.add(second)
    first.progress = 5
    await store.update(first)
    changes = await store.changes(changes.now)
    assert (changes.jobs, changes.deleted_ids, changes.complete) == ([first, second], [], False)
    await execute(store, "UPDATE jobs SET updated_at = updated_at - 60")  # a minute later
    assert (await store.changes(changes.now)).jobs == []


async def test_changes_from_a_time_that_is_no_use(store: JobStore) -> None:
    job = new_job("a")
    await store.add(job)
    await execute(store, "UPDATE jobs SET updated_at = 0")
    now = (await store.changes(None)).now
    for since in (now - KEEP_DELETED_SECONDS - 1, now + 3600):  # the clock was set back
        changes = await store.changes(since)
        assert (changes.jobs, changes.complete) == ([job], True)


# ---- several at once


async def test_each_job_of_a_dead_orchestrator_goes_to_one_taker(stores: list[JobStore]) -> None:
    jobs = [new_job("dead") for _ in range(700)]
    await asyncio.gather(*(stores[0].add(job) for job in jobs))
    for number, store in enumerate(stores):
        await store.beat(f"taker-{number}", "1")
    for _ in range(3):
        found = await asyncio.gather(
            *(store.take_over(f"taker-{number}", SILENT) for number, store in enumerate(stores))
        )
        ids = [job.id for taken in found for job in taken]
        assert sorted(ids) == sorted(job.id for job in jobs)  # all of them, none twice
        assert all(job.owner == f"taker-{number}" for number, taken in enumerate(found) for job in taken)


async def test_an_owner_that_is_taken_for_dead_while_it_writes(stores: list[JobStore]) -> None:
    """What the old owner was told is written is what the new owner got; the rest it was told is lost."""
    old, new, *_ = stores
    jobs = [new_job("old") for _ in range(200)]
    await asyncio.gather(*(old.add(job) for job in jobs))
    await old.beat("old", "1")
    await new.beat("new", "1")
    await silence(old, "old")
    for job in jobs:
        job.progress = 42
    first, rest = jobs[:20], jobs[20:]
    assert await old.update_many(first) == []
    writing = [asyncio.create_task(old.update(job)) for job in rest]
    taken = {job.id: job for job in await new.take_over("new", SILENT)}
    lost = {job_id for lost in await asyncio.gather(*writing) for job_id in lost}
    assert taken.keys() == {job.id for job in jobs}
    for job in jobs:
        assert taken[job.id].progress == (0 if job.id in lost else 42)
    assert await old.update_many(jobs) == [job.id for job in jobs]
    assert await old.beat("old", "1")  # it may go on with other jobs
    assert await old.update_many(jobs) == [job.id for job in jobs]
    assert await new.update_many(list(taken.values())) == []


async def test_a_living_orchestrator_keeps_its_jobs_until_it_leaves(stores: list[JobStore]) -> None:
    first, second, *_ = stores
    job = new_job("a")
    await first.add(job)
    await first.beat("a", "1")
    await second.beat("b", "1")
    assert await second.take_over("b", SILENT) == []
    await first.leave("a")
    assert [taken.id for taken in await second.take_over("b", SILENT)] == [job.id]
    assert await first.update(job) == [job.id]


async def test_a_name_has_one_life(stores: list[JobStore]) -> None:
    first, second, *_ = stores
    job = new_job("a")
    await first.add(job)
    assert await first.beat("a", "1")
    assert await first.beat("a", "1")
    assert await second.beat("a", "2")
    assert not await first.beat("a", "1")
    assert await first.update(job) == [job.id]  # the same owner, but not any more the same process
    with pytest.raises(StoreError, match="a is not, or no longer"):
        await first.take_over("a", SILENT)
    await first.leave("a")  # is not the one to leave
    assert await second.beat("a", "2")
    assert await second.take_over("a", SILENT) == [job]
    assert await second.update(job) == []


async def test_others_see_what_is_written_and_deleted(stores: list[JobStore]) -> None:
    first, second, *_ = stores
    kept, deleted = new_job("a"), new_job("a")
    since = (await second.changes(None)).now
    await first.add(kept)
    await first.add(deleted)
    assert (await second.changes(since)).jobs == [kept, deleted]
    await second.delete([deleted.id])
    for store in (first, second):
        changes = await store.changes(since)
        assert (changes.jobs, changes.deleted_ids) == ([kept], [deleted.id])
        assert await store.get(deleted.id) is None
        assert await store.load() == [kept]
    assert await first.update(deleted) == [deleted.id]
    with psycopg.connect(url_of(first)) as connection:
        rows = connection.execute("SELECT generation::text FROM jobs WHERE deleted").fetchall()
        assert rows == [("{}",)]  # what the client wrote is gone at once
        connection.execute(f"UPDATE jobs SET updated_at = updated_at - {KEEP_DELETED_SECONDS} WHERE deleted")
    await first.beat("a", "1")
    await first.take_over("a", SILENT)
    with psycopg.connect(url_of(first)) as connection:
        assert connection.execute("SELECT id FROM jobs").fetchall() == [(kept.id,)]


async def test_a_commit_that_comes_late_is_not_missed(stores: list[JobStore]) -> None:
    store = stores[0]
    job = new_job("a")
    await store.add(job)
    await execute(store, "UPDATE jobs SET updated_at = updated_at - 60")
    since = (await store.changes(None)).now
    with psycopg.connect(url_of(store)) as late:
        late.execute("UPDATE jobs SET progress = 9, updated_at = EXTRACT(EPOCH FROM clock_timestamp())")
        changes = await store.changes(since)
        assert changes.jobs == []
        late.commit()
        assert [job.progress for job in (await store.changes(changes.now)).jobs] == [9]


async def test_the_dead_are_forgotten(stores: list[JobStore]) -> None:
    for number, store in enumerate(stores):
        await store.beat(f"o-{number}", "1")
    await silence(stores[0], "o-1")
    await stores[0].take_over("o-0", SILENT)
    with psycopg.connect(url_of(stores[0])) as connection:
        names = connection.execute("SELECT name FROM orchestrators ORDER BY name").fetchall()
    assert names == [("o-0",), ("o-2",), ("o-3",)]


# ---- connections


def url_of(store: JobStore) -> str:
    url = store._engine.url.set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


async def test_connections_that_the_server_ends_are_replaced(stores: list[JobStore]) -> None:
    store = stores[0]
    for _ in range(3):
        with psycopg.connect(url_of(store), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'triptych'"
            )
        await store.add(new_job("a"))
    assert len(await store.load()) == 3


async def test_a_connection_that_ends_in_the_middle_of_a_write(stores: list[JobStore]) -> None:
    store = stores[0]
    job = new_job("a")
    await store.add(job)
    job.progress = 3
    with (
        psycopg.connect(url_of(store)) as holder,
        psycopg.connect(url_of(store), autocommit=True) as admin,
    ):
        holder.execute("SELECT * FROM jobs FOR UPDATE")
        update = asyncio.create_task(store.update(job))

        def waiting() -> bool:
            query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            return admin.execute(query).fetchone() is not None

        await until(waiting)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with pytest.raises(StoreError, match="test_"):
            await update
    found = await store.get(job.id)
    assert found is not None and found.progress == 0
    assert await store.update(job) == []


async def test_nobody_waits_for_a_lock_for_ever(stores: list[JobStore]) -> None:
    store = stores[0]
    job = new_job("a")
    await store.add(job)
    await execute(store, "SET lock_timeout = '50ms'")
    with psycopg.connect(url_of(store)) as holder:
        holder.execute("SELECT * FROM jobs FOR UPDATE")
        with pytest.raises(StoreError, match="lock timeout"):
            await store.update(job)
    assert await store.update(job) == []


async def test_limits_are_the_servers_defaults_only_where_the_url_says_nothing(postgres_url: str) -> None:
    limits: dict[str, str] = {}
    for name, url in (("ours", postgres_url), ("theirs", postgres_url + "&options=-c%20lock_timeout%3D7s")):
        store = JobStore(url)
        await store.open()
        limits[name] = await store._transact(lambda c: str(c.exec_driver_sql("SHOW lock_timeout").scalar()))
        await store.close()
    assert limits == {"ours": "5s", "theirs": "7s"}
