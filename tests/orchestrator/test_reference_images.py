"""Reference images from the job store to the encoder, through losses, restarts and take-overs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job, JobError, Status
from orchestrator.life import COMMAND_BYTES_PER_FRAME, Life
from orchestrator.store import JobStore
from services.media.reference import MAX_PIXELS, decode_all
from services.role import Role
from tests.cluster import Cluster, finished, until
from tests.load import frames_xxh3
from tests.reference_images import BLUE, GREEN, RED, animated, encoded, picture, png, png_bomb, scan_bomb
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2 import Generation

IMAGES = (png(RED), encoded(picture(GREEN), "JPEG"))
BASE = {"width": 64, "height": 64, "num_frames": 5, "fps": 8, "num_inference_steps": 4, "guidance_scale": 1.0}


def cluster_of(
    directory: Path, keys: str = "", counts: dict[Role, int] | None = None, **options: object
) -> Cluster:
    cluster = Cluster(directory, counts, **options)
    for instance in cluster.roles:
        instance.model = f"emulated:images=0-2{keys}"
    return cluster


def expected(prompt: str, images: Sequence[bytes], seed: int = 0) -> str:
    generation = Generation(prompt=prompt, seed=seed, **BASE)  # type: ignore[arg-type]
    return frames_xxh3(generation, "images=0-2", decode_all(images, MAX_PIXELS))


def frames(job: Job) -> str:
    assert job.status is Status.COMPLETED, job.error
    assert job.file is not None
    return f"{job.file.frames_checksum:016x}"


def stored(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "jobs.sqlite")) as database:
        count: int = database.execute("SELECT count(*) FROM reference_images").fetchone()[0]
        return count


# ---- the store


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(database_url)
    await store.open()
    yield store
    await store.close()


def new_job(owner: str = "") -> Job:
    job = Job.new("m", Generation(prompt="p"))
    job.owner = owner
    return job


async def test_images_come_back_as_they_were(store: JobStore) -> None:
    jobs = [new_job() for _ in range(3)]
    images = (b"\0\xff" * 100_000, b"second", b"")
    await store.add(jobs[0], images)
    await store.add(jobs[1])
    await store.add(jobs[2], images[:1])
    ids = [job.id for job in jobs]
    assert await store.images(ids) == {ids[0]: images, ids[2]: images[:1]}
    assert await store.images([]) == await store.images(["unknown"]) == {}
    assert await store.load() == jobs


async def test_images_stay_with_a_completed_job_and_go_with_others(store: JobStore) -> None:
    jobs = [new_job("a") for _ in range(3)]
    await store.beat("a", "1")
    for job in jobs:
        await store.add(job, IMAGES)
    jobs[0].status, jobs[1].status = Status.COMPLETED, Status.FAILED
    jobs[1].error = JobError("c", "why")
    assert await store.update_many(jobs) == []
    assert (await store.images([job.id for job in jobs])).keys() == {jobs[0].id, jobs[2].id}
    await store.delete([jobs[0].id, jobs[2].id])
    assert await store.images([job.id for job in jobs]) == {}


async def test_of_equal_requests_one_has_images(store: JobStore) -> None:
    jobs = [new_job(), new_job()]
    for job in jobs:
        job.idempotency_key = "k"
    assert await store.add(jobs[0], IMAGES) is jobs[0]
    assert (await store.add(jobs[1], IMAGES)).id == jobs[0].id
    assert (await store.images([job.id for job in jobs])).keys() == {jobs[0].id}


async def test_a_job_is_not_stored_without_its_images(store: JobStore, database_url: str) -> None:
    engine = sa.create_engine(store._database.engine.url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE reference_images"))
    engine.dispose()
    with pytest.raises(Exception, match="reference_images"):
        await store.add(new_job(), IMAGES)
    assert await store.load() == []


# ---- to the encoder


async def test_they_show_in_the_video(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        jobs = [
            await cluster.submit("p", images)
            for images in (IMAGES, IMAGES[:1], IMAGES[1:], IMAGES[::-1], (), (png(BLUE),))
        ]
        assert cluster.orchestrator.references.used > 0
        await finished(*jobs)
        shown = [frames(job) for job in jobs]
        assert shown[0] == expected("p", IMAGES)
        assert shown[4] == expected("p", ())
        assert len(set(shown)) == len(jobs)
        assert cluster.orchestrator.references.used == 0
        await cluster.slots_back()
        assert await cluster.orchestrator.images(jobs[0].id) == IMAGES
        for job in jobs:
            await cluster.orchestrator.delete(job.id)
        assert stored(tmp_path) == 0


async def test_an_encoder_dies_with_them(tmp_path: Path) -> None:
    """The next life is sent them again."""
    async with cluster_of(tmp_path, ",encode=0.3") as cluster:
        jobs = [await cluster.submit(f"p{number}", IMAGES) for number in range(2)]
        (victim,) = cluster.of(Role.ENCODER)
        await until(lambda: bool(victim.worker.tasks))
        await victim.stop()
        await victim.start()
        await finished(*jobs)
        assert [frames(job) for job in jobs] == [expected(f"p{number}", IMAGES) for number in range(2)]
        assert "lost" in [a.outcome for job in jobs for a in job.attempts if a.stage == "encode"]
        assert cluster.orchestrator.references.used == 0


async def test_the_output_of_an_encoder_is_made_again(tmp_path: Path) -> None:
    """Lineage: the images are still there when the denoiser cannot have what they became."""
    async with cluster_of(tmp_path, ",denoise=0.5") as cluster:
        jobs = [await cluster.submit(f"p{number}", IMAGES) for number in range(5)]
        (victim,) = cluster.of(Role.ENCODER)
        await until(lambda: len(victim.worker.outputs) == 3)  # the denoiser has places for two
        await victim.stop()
        await victim.start()
        await finished(*jobs)
        assert [frames(job) for job in jobs] == [expected(f"p{number}", IMAGES) for number in range(5)]
        made = [[a.outcome for a in job.attempts if a.stage == "encode"] for job in jobs]
        assert ["done", "done"] in made


async def test_an_orchestrator_that_starts_again(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, ",encode=0.2")
    async with cluster:
        jobs = [await cluster.submit(f"p{number}", IMAGES) for number in range(4)]
        used = cluster.orchestrator.references.used
        assert used == 4 * sum(map(len, IMAGES))
        await cluster.orchestrator.close()
        await cluster.start_orchestrator()
        assert 0 < cluster.orchestrator.references.used <= used
        again = [await cluster.orchestrator.find(job.id) for job in jobs]
        found = [job for job in again if job is not None]
        await finished(*found)
        assert [frames(job) for job in found] == [expected(f"p{number}", IMAGES) for number in range(4)]
        assert cluster.orchestrator.references.used == 0


async def test_another_orchestrator_takes_over(tmp_path: Path, postgres_url: str) -> None:
    cluster = cluster_of(tmp_path, ",encode=0.2", database_url=postgres_url, name="first")
    async with cluster:
        jobs = [await cluster.submit(f"p{number}", IMAGES) for number in range(3)]
        first = cluster.orchestrator
        await first.close()
        cluster.options = type(cluster.options)(**{**vars(cluster.options), "name": "second"})
        await cluster.start_orchestrator()
        found = [await cluster.orchestrator.find(job.id) for job in jobs]
        await finished(*[job for job in found if job is not None])
        assert [frames(job) for job in found if job is not None] == [
            expected(f"p{number}", IMAGES) for number in range(3)
        ]
        assert {job.owner for job in found if job is not None} == {"second"}


@pytest.mark.parametrize(
    "image",
    [
        b"\x89PNG\r\n\x1a\n",
        png()[:40],
        png_bomb(),
        scan_bomb(),
        animated("WEBP"),
        b"\xff\xd8\xff\xe0 no picture",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    ],
    ids=["magic alone", "cut", "bomb", "scans", "animated", "jpeg", "webp"],
)
async def test_harmful_images_end_their_job_alone(tmp_path: Path, image: bytes) -> None:
    async with cluster_of(tmp_path) as cluster:
        bad = await cluster.submit("p", (png(), image))
        good = await cluster.submit("p", IMAGES)
        await finished(bad, good)
        assert bad.error is not None and bad.error.code == "invalid_request"
        assert bad.error.message.startswith("reference image 2 ")
        assert len(bad.attempts) == 1
        assert frames(good) == expected("p", IMAGES)
        await cluster.slots_back()
        assert cluster.orchestrator.references.used == 0
        await until(lambda: stored(tmp_path) == len(IMAGES))


async def test_a_role_that_takes_no_images_refuses_them(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)  # its model takes none
    async with cluster:
        job = await cluster.submit("p", IMAGES)
        await finished(job)
        assert job.error is not None and job.error.code == "invalid_request"
        assert "Run.images has 2 entries, expected 0 at most" in job.error.message


# ---- limits


async def test_the_memory_for_them_is_limited(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, max_reference_bytes=100_000) as cluster:
        cluster.orchestrator.scheduler.hold()
        large = png() + bytes(60_000)
        job = await cluster.submit("p", (large,))
        with pytest.raises(ApiError) as caught:
            await cluster.submit("p", (large,))
        assert (caught.value.status, caught.value.code) == (429, "references_full")
        assert "Retry-After" in caught.value.headers
        await cluster.submit("no image")
        assert stored(tmp_path) == 1
        assert cluster.orchestrator.references.used == len(large)
        await cluster.orchestrator.delete(job.id)
        assert cluster.orchestrator.references.used == 0
        await cluster.submit("p", (large,))


async def test_a_store_that_fails_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster_of(tmp_path) as cluster:

        async def broken(job: Job, images: Sequence[bytes] = ()) -> Job:
            raise OSError("disk full")

        monkeypatch.setattr(cluster.orchestrator._store, "add", broken)
        with pytest.raises(OSError, match="disk full"):
            await cluster.submit("p", IMAGES)
        assert cluster.orchestrator.references.used == 0


async def test_frames_of_commands_keep_their_limit() -> None:
    hello = pb.Hello(role="encoder", incarnation="0" * 16, capacity=8)
    life = Life(EndpointURL.parse("grpc://127.0.0.1:1"), hello)
    sizes = [100, 3 << 20, 10, 10, COMMAND_BYTES_PER_FRAME - 100, 200, 40 << 20, 5]
    for number, size in enumerate(sizes):
        run = pb.Run(task_id=str(number), images=[pb.Image(data=bytes(size))])
        life.send(pb.Command(run=run))
    taken: list[list[str]] = []
    async for frame in life.frames():
        taken.append([command.run.task_id for command in frame.commands])
        assert len(frame.commands) == 1 or frame.ByteSize() <= COMMAND_BYTES_PER_FRAME + 1000
        if sum(map(len, taken)) == len(sizes):
            break
    assert taken == [["0"], ["1"], ["2", "3", "4"], ["5"], ["6"], ["7"]]


async def test_large_images_reach_the_encoder(tmp_path: Path) -> None:
    # What follows the picture is not looked at; together they are more than gRPC takes by default.
    noise = encoded(picture(size=(8, 6)), "PNG") + bytes(20 << 20)
    async with cluster_of(tmp_path) as cluster:
        jobs = [await cluster.submit(f"p{number}", (noise, noise)) for number in range(2)]
        await finished(*jobs)
        assert frames(jobs[1]) == expected("p1", (png(), png()))
        await cluster.slots_back()


async def test_only_the_encoder_is_sent_them(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, ",denoise=0.2") as cluster:
        job = await cluster.submit("p", IMAGES)
        denoiser = cluster.of(Role.DENOISER)[0]
        await until(lambda: bool(denoiser.worker.tasks))
        (task,) = denoiser.worker.tasks.values()
        assert len(task.run.images) == 0
        await finished(job)


async def test_submissions_at_once_do_not_pass_the_limit(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, max_reference_bytes=100_000) as cluster:
        cluster.orchestrator.scheduler.hold()
        image = png() + bytes(30_000)
        results = await asyncio.gather(
            *(cluster.submit("p", (image,)) for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(result, Job) for result in results) == 3
        assert cluster.orchestrator.references.used <= 100_000
