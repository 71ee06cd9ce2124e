"""Files without a job: found and removed, and never one that somebody wants."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.jobs import Job, Status
from orchestrator.places import MARKER, LocalPlace, Place, RemotePlace
from orchestrator.store import JobStore
from orchestrator.sweep import Sweep
from tests import s3
from tests.s3 import Door, S3Server
from triptych_proto.control_pb2 import Generation, MediaFile

FOREIGN = [
    "holiday.mp4",
    "video_1234-decode-e-1.mp4",
    f"video_{'0' * 32}.mp4",
    f"image_{'0' * 32}-decode-e-1.mp4",
    f"copy of video_{'0' * 32}-decode-e-1.mp4",
    f"video_{'0' * 32}-decode-e-1.mp4.zip",
]


def name(job: Job, attempt: int = 1, suffix: str = ".mp4") -> str:
    return f"{job.id}-decode-1a2b3c4d-{attempt}{suffix}"


def job(status: Status, store: str = "", attempt: int = 1) -> Job:
    made = Job.new("m", Generation())
    made.status = status
    if status.final:
        made.completed_at = time.time()
    if status is Status.COMPLETED:
        made.file = MediaFile(name=name(made, attempt), store=store, bytes=1)
    return made


class Bench:
    """A place with files, and the job store that should know of them."""

    def __init__(self, store: JobStore, place: Place, put: Callable[[str], object]) -> None:
        self.store = store
        self.place = place
        self.put = put
        self.jobs: dict[str, Job] = {}  # what the orchestrator has in memory

    def sweep(self, orphan_seconds: float = 0.0) -> Sweep:
        return Sweep([self.place], self.store, self.jobs, orphan_seconds)

    async def swept(self, orphan_seconds: float = 0.0) -> int:
        await asyncio.sleep(1.1 if isinstance(self.place, RemotePlace) else 0.01)  # S3's clock has seconds
        sweep = self.sweep(orphan_seconds)
        try:
            return await sweep.sweep(self.place)
        finally:
            sweep.close()

    def names(self) -> set[str]:
        return {entry.name for entry in self.place.entries()} - {MARKER}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    await store.open()
    yield store
    await store.close()


def local(store: JobStore, folder: Path) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(store, LocalPlace(folder), lambda name: (folder / name).write_bytes(b"x"))


def remote(store: JobStore, server: S3Server) -> Bench:
    folder = s3.folder(server, server.bucket())
    return Bench(store, RemotePlace(folder), lambda name: folder.write(name, b"x"))


@pytest.fixture(params=["local", "remote"])
def bench(request: pytest.FixtureRequest, store: JobStore, tmp_path: Path) -> Bench:
    if request.param == "local":
        return local(store, tmp_path / "videos")
    return remote(store, request.getfixturevalue("s3_server"))


@pytest.mark.parametrize("remembered", [False, True])
async def test_only_what_nobody_wants_is_removed(bench: Bench, remembered: bool) -> None:
    assert await bench.swept() == 0  # the place is ours from now on
    where = bench.place.store
    wanted, running, queued = job(Status.COMPLETED, where), job(Status.IN_PROGRESS), job(Status.QUEUED)
    again, failed, elsewhere = (
        job(Status.COMPLETED, where, 2),
        job(Status.FAILED),
        job(Status.COMPLETED, "s3://x/y"),
    )
    unknown = job(Status.COMPLETED, where)
    for one in (wanted, running, queued, again, failed, elsewhere):
        await bench.store.add(one)
        if remembered:
            bench.jobs[one.id] = one
    kept = {name(wanted), name(running), f"{name(queued)}.part", name(again, 2), *FOREIGN}
    orphans = {name(again), name(failed), name(elsewhere), name(unknown), f"{name(unknown, 2, '.webm')}.part"}
    for one_name in kept | orphans:
        bench.put(one_name)
    assert await bench.swept(3600.0) == 0
    assert bench.names() == kept | orphans
    assert await bench.swept() == len(orphans)
    assert bench.names() == kept
    await bench.store.delete([wanted.id])
    bench.jobs.pop(wanted.id, None)
    assert await bench.swept() == 1
    assert bench.names() == kept - {name(wanted)}


async def test_memory_that_is_behind_removes_nothing(bench: Bench) -> None:
    """Another orchestrator has finished the job."""
    assert await bench.swept() == 0
    one = job(Status.COMPLETED, bench.place.store)
    await bench.store.add(one)
    before = job(Status.FAILED)
    before.id = one.id
    bench.jobs[one.id] = before
    bench.put(name(one))
    assert await bench.swept() == 0
    assert bench.names() == {name(one)}


async def test_a_place_of_another_job_store_is_left_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.place.claim("f" * 32)
    bench.put(name(job(Status.QUEUED)))
    sweep = bench.sweep()
    for _ in range(2):
        assert await sweep.sweep(bench.place) == 0
    sweep.close()
    assert len(bench.names()) == 1
    assert caplog.text.count("it belongs to another job store") == 1


async def test_a_place_with_files_of_strangers_gets_no_owner(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A new database does not take an old one's files for orphans."""
    bench.put(name(job(Status.COMPLETED)))
    assert await bench.swept() == 0
    identity = await bench.store.identity()
    assert (
        f"of 1 requests it has files that the job store does not know. If no other one does, put {identity}"
        in (caplog.text)
    )
    assert bench.place.owner() == "" and len(bench.names()) == 1
    bench.put(MARKER)  # a stranger's
    assert await bench.swept() == 0
    if isinstance(bench.place, LocalPlace):
        Path(str(bench.place), MARKER).write_text(identity)
    else:
        bench.place.claim(identity)
    assert await bench.swept() == 1
    assert bench.names() == set()


async def test_a_living_decoders_files_stay(store: JobStore, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    bench = local(store, folder)
    assert await bench.swept() == 0
    living, dead = job(Status.FAILED), job(Status.FAILED)
    for one in (living, dead):
        await store.add(one)
        for end in ("", ".part", ".claim"):
            bench.put(name(one) + end)
    with (folder / f"{name(living)}.claim").open("r+b") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        assert await bench.swept() == 1
        assert bench.names() == {name(living) + end for end in ("", ".part", ".claim")}
    assert await bench.swept() == 1
    assert bench.names() == set()


async def test_links_and_folders_stay(store: JobStore, tmp_path: Path) -> None:
    folder, precious = tmp_path / "videos", tmp_path / "precious"
    bench = local(store, folder)
    precious.write_bytes(b"x")
    os.symlink(precious, folder / name(job(Status.FAILED)))
    (folder / name(job(Status.FAILED), 2)).mkdir()
    assert await bench.swept() == 0
    assert len(list(folder.iterdir())) == 3 and precious.exists()


async def test_an_age_is_that_of_the_latest_part(store: JobStore, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    bench = local(store, folder)
    assert await bench.swept() == 0
    one = name(job(Status.FAILED))
    for end, age in (("", 1000.0), (".part", 10.0)):
        bench.put(one + end)
        os.utime(folder / (one + end), (time.time() - age,) * 2)
    assert await bench.swept(100.0) == 0
    os.utime(folder / f"{one}.part", (time.time() - 101.0,) * 2)
    assert await bench.swept(100.0) == 1


async def test_several_orchestrators_sweep_at_once(
    postgres_url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    stores = [JobStore(postgres_url) for _ in range(2)]
    for store in stores:
        await store.open()
    assert await stores[0].identity() == await stores[1].identity()
    for bench in (remote(stores[0], s3_server), local(stores[0], tmp_path / "videos")):
        assert await bench.swept() == 0
        wanted, running = job(Status.COMPLETED, bench.place.store), job(Status.IN_PROGRESS)
        for one in (wanted, running):
            await stores[0].add(one)
        for one in (wanted, running, *(job(Status.FAILED) for _ in range(20))):
            bench.put(name(one))
        others = [Bench(store, bench.place, bench.put) for store in stores]
        await asyncio.gather(*(other.swept() for other in others))
        assert bench.names() == {name(wanted), name(running)}
    for store in stores:
        await store.close()


async def test_a_store_that_is_away_is_swept_later(
    store: JobStore, s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with Door(s3_server) as door:
        folder = s3.folder(door, s3_server.bucket())
        bench = Bench(store, RemotePlace(folder), lambda name: folder.write(name, b"x"))
        assert await bench.swept() == 0
        await asyncio.to_thread(bench.put, name(job(Status.FAILED)))
        door.away = True
        assert await bench.swept() == 0
        assert "is not swept of files without a job" in caplog.text
        door.away = False
        assert await bench.swept() == 1
