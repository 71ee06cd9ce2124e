"""Files of decoders whose disk does not last: no job is completed before its bytes are safe, none is lost."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils

from orchestrator import copies
from orchestrator.copies import FORGOTTEN_SECONDS
from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Status
from services.role import Role
from services.server import RoleServer
from services.task import WorkerLimits
from tests.cluster import Cluster, finished, until
from tests.orchestrator.http.conformance import Conformance
from triptych_proto import control_pb2 as pb

PATIENT = WorkerLimits(capacity=2, read_seconds=5.0, pool_seconds=5.0, hold_seconds=30.0)


def handing_over(directory: Path, decoders: int = 1, **options: Any) -> Cluster:
    """A cluster whose decoders write where the orchestrator would look for files that stay."""
    counts = {Role.ENCODER: 1, Role.DENOISER: 1, Role.DECODER: decoders}
    cluster = Cluster(directory, counts, limits=PATIENT, **options)
    for instance in cluster.of(Role.DECODER):
        instance.hand_over = True
    return cluster


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


async def copied(cluster: Cluster, directory: Path, job: Job) -> None:
    """The job is completed, its file here and nowhere else."""
    assert job.status is Status.COMPLETED and job.file is not None
    await cluster.slots_back()
    await until(lambda: names(directory / "videos") == [])
    assert names(directory / "copies") == [job.file.name]
    assert cluster.orchestrator.content_path(job) == directory / "copies" / job.file.name


class Context:
    """A call's context with another ``write``."""

    def __init__(self, inner: Any, write: Any) -> None:
        self._inner, self.write = inner, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Link:
    """What the decoders send of their files: it stops after the first bytes until ``go_on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.broken: list[str] = []  # for each of the first reads: "short" or "late"
        self.go_on = asyncio.Event()
        self.go_on.set()
        real = RoleServer.ReadFile

        async def read(server: RoleServer, request: Any, context: Any) -> None:
            self.reads += 1
            fault, write = self.broken.pop(0) if self.broken else "", context.write

            async def write_in_two(chunk: pb.FileChunk) -> None:
                await write(pb.FileChunk(data=chunk.data[:10], file_bytes=chunk.file_bytes))
                await self.go_on.wait()
                if fault == "late":
                    await asyncio.sleep(60)
                if not fault:
                    await write(pb.FileChunk(data=chunk.data[10:]))

            await real(server, request, Context(context, write_in_two))

        monkeypatch.setattr(RoleServer, "ReadFile", read)


@pytest.fixture
async def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(copies, "RETRY_SECONDS", 0.01)
    return Link(monkeypatch)


async def test_the_file_moves_to_the_orchestrator(tmp_path: Path, conformance: Conformance) -> None:
    async with handing_over(tmp_path) as cluster:
        jobs = [
            await cluster.submit("p", seed=seed, format=format) for seed, format in enumerate(["", "webm"])
        ]
        await finished(*jobs)
        assert [job.status for job in jobs] == [Status.COMPLETED] * 2
        await cluster.slots_back()
        await until(lambda: names(tmp_path / "videos") == [])
        kept = [job.file.name for job in jobs if job.file is not None]
        assert names(tmp_path / "copies") == sorted(kept)
        await cluster.of(Role.DECODER)[0].stop()  # with its disk
        app = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            for job, name in zip(jobs, kept, strict=True):
                response = await api.get(f"/v1/videos/{job.id}/content")
                assert await response.read() == (tmp_path / "copies" / name).read_bytes() != b""
            for job in jobs:
                assert (await api.delete(f"/v1/videos/{job.id}")).status == 200
        assert names(tmp_path / "copies") == []
        await cluster.of(Role.DECODER)[0].start()


async def test_a_job_is_completed_when_its_bytes_are_here(tmp_path: Path, link: Link) -> None:
    link.go_on.clear()
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await until(lambda: link.reads == 1)
        await until(lambda: bool(names(tmp_path / "copies")))
        assert names(tmp_path / "copies")[0].endswith(".part")
        assert job.status is Status.IN_PROGRESS
        link.go_on.set()
        await finished(job)
        await copied(cluster, tmp_path, job)
        assert job.phases[-1].name == "save" and link.reads == 1


async def test_a_decoder_that_is_lost_before_that_is_replaced(tmp_path: Path, link: Link) -> None:
    link.go_on.clear()
    async with handing_over(tmp_path, decoders=2) as cluster:
        job = await cluster.submit("p")
        await until(lambda: link.reads == 1)
        (victim,) = [instance for instance in cluster.of(Role.DECODER) if instance.worker.outputs]
        await victim.stop()
        link.go_on.set()
        await finished(job)
        assert job.file_url != str(victim.url)
        assert [a.outcome for a in job.attempts if a.stage == "decode"] == ["lost", "done"]
        await victim.start()  # it finds its file again
        await until(lambda: len(cluster.orchestrator.peers.lives()) == 4)
        await copied(cluster, tmp_path, job)


async def test_a_restarted_orchestrator_copies_what_is_left(tmp_path: Path, link: Link) -> None:
    link.go_on.clear()
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await until(lambda: link.reads == 1)
        await cluster.orchestrator.close()
        assert names(tmp_path / "copies") == []
        link.go_on.set()
        await cluster.start_orchestrator()
        again = await cluster.orchestrator.find(job.id)
        assert again is not None and again is not job
        await finished(again)
        await copied(cluster, tmp_path, again)
        assert [len(instance.stage.made_by) for instance in cluster.roles] == [1, 1, 1], (
            "nothing was repeated"
        )


async def test_a_restarted_decoder_hands_over_what_it_finds(tmp_path: Path, link: Link) -> None:
    link.go_on.clear()
    async with handing_over(tmp_path) as cluster:
        (decoder,) = cluster.of(Role.DECODER)
        job = await cluster.submit("p")
        await until(lambda: link.reads == 1)
        await decoder.stop()
        link.go_on.set()
        await decoder.start()
        await finished(job)
        await copied(cluster, tmp_path, job)
        assert not decoder.stage.made_by, "the new life decoded nothing"


async def test_a_broken_copy_is_made_again(
    tmp_path: Path, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "STALL_SECONDS", 0.2)
    link.broken = ["short", "late"]
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await finished(job)
        await copied(cluster, tmp_path, job)
        assert link.reads == 3
        assert [a.outcome for a in job.attempts] == ["done"] * 3


async def test_copies_that_never_come_fail_the_job(tmp_path: Path, link: Link) -> None:
    link.broken = ["short"] * 1000
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await finished(job)
        assert job.error is not None and job.error.code == "stage_failed"
        assert "copying" in job.error.message and "bytes too early" in job.error.message
        await cluster.slots_back()
        await until(lambda: names(tmp_path / "videos") == [])
        assert names(tmp_path / "copies") == []


async def test_a_folder_that_cannot_be_written_fails_the_job(tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("no folder")
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await finished(job)
        assert job.error is not None and job.error.code == "output_store" and "copies" in job.error.message
        await cluster.slots_back()
        await until(lambda: names(tmp_path / "videos") == [])


async def test_nothing_stays_of_a_job_that_is_deleted_meanwhile(tmp_path: Path, link: Link) -> None:
    link.go_on.clear()
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await until(lambda: link.reads == 1)
        assert await cluster.orchestrator.delete(job.id)
        link.go_on.set()
        await cluster.slots_back()
        await until(lambda: names(tmp_path / "videos") == names(tmp_path / "copies") == [])


async def test_what_a_crash_has_left_goes_after_an_hour(tmp_path: Path) -> None:
    async with handing_over(tmp_path) as cluster:
        job = await cluster.submit("p")
        await finished(job)
        await cluster.slots_back()
        assert job.file is not None
        folder = tmp_path / "copies"
        old = ["video_gone-decode-e-1.mp4", f"{job.id}-decode-x-9.mp4", f"{job.id}-decode-x-9.12ab.part"]
        for name in [*old, "video_young-decode-e-1.mp4"]:
            (folder / name).touch()
        for name in [*old, job.file.name]:
            age = time.time() - FORGOTTEN_SECONDS - 60
            os.utime(folder / name, (age, age))
        await cluster.orchestrator.files.tidy(cluster.orchestrator._jobs)
        assert names(folder) == sorted([job.file.name, "video_young-decode-e-1.mp4"])
