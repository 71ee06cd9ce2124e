"""``/v1/videos/sync``: the file in the reply; what becomes of the job when client or server give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import test_utils, web

from orchestrator.http import waiting
from orchestrator.http.app import create_app, create_runner
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job
from tests.cluster import Cluster
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService

URL = "/v1/videos/sync"
KEY = {"Idempotency-Key": "k"}


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def submitted(service: MemoryService) -> Job:
    await until(lambda: service.table)
    (job,) = service.table.values()
    return job


@pytest.mark.parametrize("form", [False, True])
async def test_the_reply_is_the_video(api: test_utils.TestClient, service: MemoryService, form: bool) -> None:
    fields = {"prompt": "a cat", "seed": "7"}
    asking = asyncio.ensure_future(api.post(URL, **({"data": fields} if form else {"json": fields})))
    job = await submitted(service)
    assert job.generation.seed == 7
    service.complete(job, b"video" * 1000)
    response = await asking
    assert response.status == 200
    assert response.content_type == "video/mp4"
    assert response.headers["X-Video-Id"] == job.id
    assert response.headers["X-Inference-Time-S"] == "4.500"
    assert response.headers["X-Peak-Memory-MB"] == "3.0"
    assert await response.read() == b"video" * 1000
    assert list(service.table) == [job.id], "it can be downloaded again"


@pytest.mark.parametrize("local", [False, True])
async def test_it_is_whole_whatever_is_said(
    api: test_utils.TestClient, service: MemoryService, tmp_path: Path, local: bool
) -> None:
    """Ranges and conditions are for GET."""
    if local:
        service.path = tmp_path / "video"
        service.path.write_bytes(b"video")
    past = "Thu, 01 Jan 1970 00:00:00 GMT"
    for headers in (
        {"Range": "bytes=1-2"},
        {"Range": "bytes=9-"},
        {"If-None-Match": "*"},
        {"If-Match": '"other"'},
        {"If-Unmodified-Since": past},
        {"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"},
    ):
        asking = asyncio.ensure_future(api.post(URL, json={"prompt": "a"}, headers=headers))
        service.complete(await submitted(service), b"video")
        response = await asking
        assert (response.status, await response.read()) == (200, b"video"), headers
        service.table.clear()


async def test_a_job_that_fails(api: test_utils.TestClient, service: MemoryService) -> None:
    for code, status in (("stage_failed", 422), ("timeout", 504)):
        asking = asyncio.ensure_future(api.post(URL, json={"prompt": "a"}))
        job = await submitted(service)
        service.fail(job, code)
        response = await asking
        assert response.status == status
        assert job.id in (await response.json())["error"]["message"]
        assert (response.headers["X-Video-Id"], response.headers["x-should-retry"]) == (job.id, "false")
        await api.delete(f"/v1/videos/{job.id}")


async def test_a_job_that_somebody_deletes(api: test_utils.TestClient, service: MemoryService) -> None:
    asking = asyncio.ensure_future(api.post(URL, json={"prompt": "a"}))
    job = await submitted(service)
    await api.delete(f"/v1/videos/{job.id}")
    response = await asking
    assert (response.status, (await response.json())["error"]["code"]) == (404, "video_not_found")


async def test_a_bad_request_is_refused_at_once(api: test_utils.TestClient, service: MemoryService) -> None:
    response = await api.post(URL, json={"prompt": "a", "size": "1x1"})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "size")
    assert not service.table
    response = await api.get(URL)
    assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.fixture
async def server(service: MemoryService, conformance: Conformance) -> AsyncIterator[str]:
    """As in production: unlike the test server of aiohttp it cancels no handler of a client that left."""
    runner = create_runner(service, HttpOptions())
    conformance.watch(runner.app)
    await runner.setup()
    port = test_utils.unused_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}{URL}"
    await runner.cleanup()


async def leave(url: str, service: MemoryService, headers: dict[str, str]) -> Job:
    """A client that goes when its job is there."""
    async with aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(url, json={"prompt": "a"}, headers=headers))
        job = await submitted(service)
        asking.cancel()
    return job


async def test_a_client_that_leaves_takes_its_job_with_it(
    api: test_utils.TestClient, server: str, service: MemoryService
) -> None:
    for url in (str(api.make_url(URL)), server):
        job = await leave(url, service, {})
        await until(lambda job_id=job.id: job_id not in service.table)


async def test_one_that_can_come_back_finds_its_job(server: str, service: MemoryService) -> None:
    job = await leave(server, service, KEY)
    await until(lambda: not service.waiting)  # the server has noticed
    assert list(service.table) == [job.id]
    async with aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(server, json={"prompt": "a"}, headers=KEY))
        await until(lambda: service.waiting)
        service.complete(job, b"video")
        response = await asking
        assert (response.headers["X-Video-Id"], await response.read()) == (job.id, b"video")


@pytest.mark.parametrize("options", [HttpOptions(sync_timeout=30.0)])
async def test_the_job_has_no_more_time_than_the_server_waits(
    api: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    for asked, span in ((None, 30.0), (20, 20.0), (40, 30.0)):
        asking = asyncio.ensure_future(api.post(URL, json={"prompt": "a", "timeout": asked}))
        job = await submitted(service)
        assert job.deadline == job.created_at + span
        service.complete(job)
        await asking
        await api.delete(f"/v1/videos/{job.id}")


@pytest.mark.parametrize("options", [HttpOptions(sync_timeout=0.1)])
async def test_a_job_that_nobody_ends(
    api: test_utils.TestClient, options: HttpOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "GRACE_SECONDS", 0.1)
    response = await api.post(URL, json={"prompt": "a"})
    assert (response.status, (await response.json())["error"]["code"]) == (504, "timeout")


async def test_with_a_real_orchestrator(tmp_path: Path, conformance: Conformance) -> None:
    async with Cluster(tmp_path) as cluster:
        app = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            response = await api.post(URL, json={"prompt": "a"})
            data = await response.read()
            assert (response.status, data[4:8]) == (200, b"ftyp")
            (decoder,) = (role for role in cluster.roles if role.role.value == "decoder")
            await decoder.stop()
            response = await api.post(URL, json={"prompt": "a", "timeout": 1})
            assert (response.status, response.headers["x-should-retry"]) == (504, "false")
            asking = asyncio.ensure_future(api.post(URL, json={"prompt": "a"}))
            await until(lambda: len(cluster.orchestrator._jobs) == 3)
            asking.cancel()
            await until(lambda: len(cluster.orchestrator._jobs) == 2)
            await decoder.start()
        await cluster.slots_back()
