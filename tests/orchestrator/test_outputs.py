"""Files in a store: served, linked to and removed by the orchestrator, which believes no role about where."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import pytest
from aiohttp import test_utils

from orchestrator import outputs, peers
from orchestrator.http.app import create_app
from orchestrator.http.errors import ApiError
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Status
from orchestrator.outputs import Outputs
from services.role import Role
from tests import s3
from tests.cluster import Cluster, finished, until
from tests.s3 import Door, S3Server
from triptych_proto.control_pb2 import MediaFile


def cluster(tmp_path: Path, where: S3Server | Door, bucket: str, **options: object) -> Cluster:
    """Its decoder writes to the bucket, and its orchestrator knows that."""
    folder = s3.folder(where, bucket)
    made = Cluster(tmp_path, **{"remote_outputs": (folder,), **options})  # type: ignore[arg-type]
    for decoder in made.of(Role.DECODER):
        decoder.remote = folder
        decoder.upload_seconds = 0.5
    return made


async def content(made: Cluster, job: Job, offset: int, length: int) -> bytes:
    return b"".join([data async for data in made.orchestrator.read_content(job, offset, length)])


async def test_a_file_in_the_store_is_served_from_there(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    async with cluster(tmp_path, s3_server, bucket) as made:
        job = await made.submit("p")
        await finished(job)
        await made.slots_back()
        assert job.status is Status.COMPLETED and job.file is not None
        assert job.file.store == f"s3://{bucket}/videos"
        assert s3_server.names(bucket) == {f"videos/{job.file.name}"}
        (decoder,) = made.of(Role.DECODER)
        await until(lambda: list(decoder.spool.iterdir()) == [])
        stored = s3_server.get(bucket, f"videos/{job.file.name}")
        await decoder.stop()  # it is not needed for this
        app = create_app(made.orchestrator, HttpOptions())
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            url = f"/v1/videos/{job.id}/content"
            whole = await api.get(url)
            assert (whole.status, await whole.read()) == (200, stored)
            assert whole.headers["Content-Type"] == "video/mp4"
            part = await api.get(url, headers={"Range": "bytes=5-104"})
            assert (part.status, await part.read()) == (206, stored[5:105])
            assert part.headers["Content-Range"] == f"bytes 5-104/{len(stored)}"
            head = await api.head(url)
            assert (head.status, head.content_length) == (200, len(stored))
            known = await api.get(url, headers={"If-None-Match": whole.headers["ETag"]})
            assert known.status == 304
            picture = await api.get(f"{url}?variant=thumbnail")
            assert picture.status == 200 and (await picture.read())[8:12] == b"WEBP"
            s3_server.client.delete_object(Bucket=bucket, Key=f"videos/{job.file.name}")
            gone = await api.get(url)
            assert (gone.status, (await gone.json())["error"]["code"]) == (404, "content_gone")
        await decoder.start()


async def test_clients_are_sent_to_the_store(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    async with cluster(tmp_path, s3_server, bucket, redirect_seconds=60.0) as made:
        job = await made.submit("p")
        await finished(job)
        assert job.file is not None
        app = create_app(made.orchestrator, HttpOptions())
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            url = f"/v1/videos/{job.id}/content"
            answer = await api.get(url, allow_redirects=False)
            assert answer.status == 307
            link = answer.headers["Location"]
            assert (await api.head(url, allow_redirects=False)).status == 200
        assert link.startswith(f"{s3_server.url}/{bucket}/videos/{job.file.name}?")
        request = urllib.request.Request(link, headers={"Range": "bytes=1-3"})
        with await asyncio.to_thread(urllib.request.urlopen, request, timeout=10) as reply:
            assert reply.status == 206
            assert reply.read() == s3_server.get(bucket, f"videos/{job.file.name}")[1:4]
            assert reply.headers["Content-Disposition"] == f'attachment; filename="{job.id}.mp4"'


async def test_large_files_come_in_pieces(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "FIRST_CHUNK_BYTES", 10)
    monkeypatch.setattr(outputs, "CHUNK_BYTES", 100)
    bucket = s3_server.bucket()
    folder = s3.folder(s3_server, bucket)
    data = bytes(range(256)) * 2
    folder.write("a.mp4", data)
    file = MediaFile(name="a.mp4", store=folder.url, bytes=len(data))
    known = Outputs([folder])
    for offset, length in ((0, 512), (0, 1), (5, 10), (5, 11), (5, 110), (5, 111), (511, 1), (0, 0)):
        chunks = [chunk async for chunk in known.read(file, offset, length)]
        assert b"".join(chunks) == data[offset : offset + length]
        assert all(len(chunk) <= 100 for chunk in chunks) and [len(chunk) for chunk in chunks[:1]] <= [10]
    async for chunk in known.read(file, 0, 512):
        assert chunk == data[:10]
        break  # a client that leaves
    with pytest.raises(ApiError, match="cannot be read from its store") as short:
        assert [chunk async for chunk in known.read(file, 400, 200)]
    assert short.value.status == 503
    known.close()


async def test_deleted_files_go_when_the_store_is_back(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "RETRY_SECONDS", 0.2)
    bucket = s3_server.bucket()
    async with Door(s3_server) as door, cluster(tmp_path, door, bucket) as made:
        jobs = [await made.submit("p", seed=seed) for seed in range(3)]
        await finished(*jobs)
        await made.slots_back()
        assert await made.orchestrator.delete(jobs[0].id)
        assert len(s3_server.names(bucket)) == 2
        door.away = True
        with pytest.raises(ApiError, match="cannot be read from its store") as away:
            await content(made, jobs[1], 0, 1)
        assert (away.value.status, away.value.code) == (503, "file_unavailable")
        for job in jobs[1:]:
            assert await made.orchestrator.delete(job.id)
            assert await made.orchestrator.find(job.id) is None
        assert len(s3_server.names(bucket)) == 2
        door.away = False
        await until(lambda: not s3_server.names(bucket))


async def test_finished_jobs_and_their_files_go_after_the_retention(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    async with cluster(tmp_path, s3_server, bucket, retention_seconds=1.0) as made:
        job = await made.submit("p")
        await finished(job)
        await until(lambda: not made.orchestrator._jobs)
        await until(lambda: not s3_server.names(bucket))


@pytest.mark.parametrize("state", ["away", "full"])
async def test_a_store_that_takes_no_file_fails_the_job(
    s3_server: S3Server, tmp_path: Path, state: str
) -> None:
    """And the decoder lives on."""
    bucket = s3_server.bucket()
    async with Door(s3_server) as door, cluster(tmp_path, door, bucket) as made:
        setattr(door, state, True)
        job = await made.submit("p")
        await finished(job)
        assert job.error is not None and job.error.code == "output_store"
        assert job.error.message.startswith(f"s3://{bucket}/videos/{job.id}-decode-")
        setattr(door, state, False)
        job = await made.submit("p")
        await finished(job)
        assert job.status is Status.COMPLETED
        await made.slots_back()
        assert len(s3_server.names(bucket)) == 1


async def test_the_next_task_computes_while_a_file_is_on_its_way(s3_server: S3Server, tmp_path: Path) -> None:
    """As many as there are places, and no more."""
    bucket = s3_server.bucket()
    async with Door(s3_server) as door, cluster(tmp_path, door, bucket) as made:
        door.gate.clear()
        (decoder,) = made.of(Role.DECODER)
        jobs = [await made.submit("p", seed=seed) for seed in range(4)]
        await until(lambda: door.waiting == 2)  # the worker's capacity
        assert len(decoder.stage.made_by) == 2 and not any(job.status.final for job in jobs)
        door.gate.set()
        await finished(*jobs)
        assert {job.status for job in jobs} == {Status.COMPLETED}
        await made.slots_back()


async def test_a_job_deleted_while_its_file_is_on_its_way_leaves_nothing(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    async with Door(s3_server) as door, cluster(tmp_path, door, bucket) as made:
        door.gate.clear()
        job = await made.submit("p")
        await until(lambda: door.waiting == 1)
        assert await made.orchestrator.delete(job.id)
        door.gate.set()
        (decoder,) = made.of(Role.DECODER)
        await until(lambda: list(decoder.spool.iterdir()) == [] and not decoder.worker.tasks)
        assert s3_server.names(bucket) == set()


async def test_a_restarted_decoder_has_its_file_accepted(s3_server: S3Server, tmp_path: Path) -> None:
    """It ended while its upload was answered by nobody; the orchestrator lived on, or not."""
    bucket = s3_server.bucket()
    async with Door(s3_server) as door, cluster(tmp_path, door, bucket) as made:
        (decoder,) = made.of(Role.DECODER)
        job = await made.submit("p")
        await finished(job)
        await made.slots_back()
        door.gate.clear()
        job = await made.submit("q")
        await until(lambda: door.waiting == 1)
        await made.orchestrator.close()
        (claim,) = [path for path in decoder.spool.iterdir() if path.suffix == ".claim"]
        task = next(iter(decoder.worker.tasks.values()))
        door.gate.set()
        await until(lambda: not decoder.worker.tasks)
        await decoder.stop()
        assert claim.exists(), f"{task.run.task_id} is still nobody's"
        await decoder.start()
        assert len(decoder.worker.outputs) == 1
        await made.start_orchestrator()
        await until(lambda: made.orchestrator._jobs[job.id].status.final)
        found = made.orchestrator._jobs[job.id]
        assert found.status is Status.COMPLETED and found.file is not None
        assert decoder.stage.made_by == {}, "it is not computed again"
        await made.slots_back()
        await until(lambda: list(decoder.spool.iterdir()) == [])
        assert len(s3_server.names(bucket)) == 2


async def test_a_store_that_the_orchestrator_was_not_told_of_is_never_read(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "BROKEN_SECONDS", (0.05,))
    bucket, other = s3_server.bucket(), s3_server.bucket()
    folder = s3.folder(s3_server, other)
    async with cluster(tmp_path, s3_server, bucket, remote_outputs=(folder,)) as made:
        (decoder,) = made.of(Role.DECODER)
        refused: list[str] = []
        peer = made.orchestrator.peers[decoder.url]
        refuse = peer._refuse
        monkeypatch.setattr(peer, "_refuse", lambda reason: (refused.append(reason), refuse(reason)))
        job = await made.submit("p")
        await finished(job)
        assert job.status is Status.FAILED and job.file is None
        assert job.error is not None and job.error.code == "output_store"
        assert job.error.message.startswith(f"MediaFile.store is 's3://{bucket}/videos', expected")
        assert refused and all(
            f"it breaks the contract: MediaFile.store is 's3://{bucket}/videos'" in reason
            and f"told of with --output: s3://{other}/videos" in reason
            for reason in refused
        )
        await until(lambda: not s3_server.names(bucket))  # its decoder is told to drop it


async def test_files_recorded_under_other_options_are_not_read() -> None:
    known = Outputs()
    file = MediaFile(name="a.mp4", store="s3://elsewhere/videos", bytes=10)
    with pytest.raises(
        ApiError, match=r"s3://elsewhere/videos, which this server was not told of"
    ) as unknown:
        assert [chunk async for chunk in known.read(file, 0, 10)]
    assert unknown.value.status == 503
    assert await known.link(file, "a.mp4") is None
    await known.remove(file)
    known.close()
