"""Downloads: from a file that this host sees and from the decoder's stream, with the same results."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import test_utils, web

from orchestrator.http import sending
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Status
from tests.orchestrator.http.service import MemoryService

DATA = os.urandom(5000)


def server(api: test_utils.TestClient) -> web.Server:
    assert isinstance(api.server, test_utils.TestServer)
    assert api.server.runner is not None
    assert api.server.runner.server is not None
    return api.server.runner.server


@pytest.fixture(params=["file", "small file", "decoder"])
def job(
    request: pytest.FixtureRequest, service: MemoryService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Job:
    job = service.add()
    service.complete(job, DATA)
    if request.param == "file":
        monkeypatch.setattr(sending, "SMALL_BYTES", 0)
    if request.param != "decoder":
        service.path = tmp_path / "video.bin"
        service.path.write_bytes(DATA)
    return job


async def test_the_whole_file(api: test_utils.TestClient, job: Job) -> None:
    response = await api.get(f"/v1/videos/{job.id}/content?variant=video", headers={"Accept": "text/x"})
    assert response.status == 200
    assert response.headers["Content-Type"] == "video/mp4"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{job.id}.mp4"'
    assert response.headers["x-request-id"]
    assert await response.read() == DATA


async def test_a_small_file_looks_like_a_large_one(
    api: test_utils.TestClient, service: MemoryService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.add()
    service.complete(job, DATA)
    service.path = tmp_path / "video.bin"
    service.path.write_bytes(DATA)
    seen = []
    for most in (sending.SMALL_BYTES, 0):
        monkeypatch.setattr(sending, "SMALL_BYTES", most)
        response = await api.get(f"/v1/videos/{job.id}/content")
        own = {name.lower(): value for name, value in response.headers.items()}
        assert own.pop("date") and own.pop("x-request-id")
        seen.append((response.status, own, await response.read()))
    assert {"etag", "last-modified", "accept-ranges"} <= seen[0][1].keys()
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [("0-0", 0, 1), ("10-2009", 10, 2010), ("4000-", 4000, 5000), ("-7", 4993, 5000), ("1-99999", 1, 5000)],
)
async def test_ranges(api: test_utils.TestClient, job: Job, wanted: str, start: int, stop: int) -> None:
    response = await api.get(f"/v1/videos/{job.id}/content", headers={"Range": f"bytes={wanted}"})
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/5000"
    assert response.content_length == stop - start
    assert await response.read() == DATA[start:stop]


@pytest.mark.parametrize("wanted", ["bytes=5000-", "bytes=9-8", "lines=1-2"])
async def test_ranges_outside(api: test_utils.TestClient, job: Job, wanted: str) -> None:
    response = await api.get(f"/v1/videos/{job.id}/content", headers={"Range": wanted})
    assert (response.status, response.headers["Content-Range"]) == (416, "bytes */5000")
    assert (await response.json())["error"]["message"]


async def test_a_validator_saves_the_transfer(api: test_utils.TestClient, job: Job) -> None:
    url = f"/v1/videos/{job.id}/content"
    tag = (await api.head(url)).headers["ETag"]
    response = await api.get(url, headers={"If-None-Match": tag})
    assert (response.status, await response.read()) == (304, b"")
    response = await api.get(url, headers={"If-None-Match": '"other"'})
    assert (response.status, await response.read()) == (200, DATA)
    response = await api.get(url, headers={"If-Range": tag, "Range": "bytes=1-2"})
    assert (response.status, await response.read()) == (206, DATA[1:3])


@pytest.mark.parametrize("other", ['"other"', "W/{tag}", "other", "Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_a_range_of_something_else(api: test_utils.TestClient, job: Job, other: str) -> None:
    url = f"/v1/videos/{job.id}/content"
    other = other.format(tag=(await api.head(url)).headers["ETag"])
    for wanted in ("bytes=1-2", "bytes=9999-"):
        response = await api.get(url, headers={"If-Range": other, "Range": wanted})
        assert (response.status, await response.read()) == (200, DATA)


async def test_a_range_outside_the_file_is_an_error_whatever_else_is_said(
    api: test_utils.TestClient, job: Job
) -> None:
    tag = (await api.head(f"/v1/videos/{job.id}/content")).headers["ETag"]
    headers = {"If-Range": tag, "Range": f"bytes={len(DATA)}-"}
    response = await api.get(f"/v1/videos/{job.id}/content", headers=headers)
    assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    assert (await response.json())["error"]["code"] == "range_not_satisfiable"


async def test_a_connection_serves_again(api: test_utils.TestClient, job: Job) -> None:
    for _ in range(3):
        async with api.get(f"/v1/videos/{job.id}/content") as response:
            assert await response.read() == DATA
    assert server(api).requests_count == 3
    assert len(server(api).connections) == 1


@pytest.mark.parametrize("options", [HttpOptions(download_timeout=0.3)])
async def test_a_client_that_stops_reading(
    api: test_utils.TestClient, service: MemoryService, job: Job, options: HttpOptions
) -> None:
    data = bytes(32 << 20)
    service.complete(job, data)
    if service.path is not None:
        service.path.write_bytes(data)
    reader, writer = await asyncio.open_connection(api.host, api.port)
    writer.write(f"GET /v1/videos/{job.id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    deadline = time.monotonic() + 20
    while server(api).connections:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    writer.close()


async def test_head(api: test_utils.TestClient, job: Job) -> None:
    response = await api.head(f"/v1/videos/{job.id}/content")
    assert (response.status, response.content_length, await response.read()) == (200, 5000, b"")


async def test_what_has_no_content(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    url = f"/v1/videos/{job.id}/content"
    response = await api.get(url)
    assert (response.status, (await response.json())["error"]["code"]) == (404, "video_not_ready")
    service.fail(job)
    response = await api.get(url)
    assert response.status == 422 and "denoise failed" in (await response.json())["error"]["message"]
    response = await api.get(f"{url}?variant=poster")
    assert (response.status, (await response.json())["error"]["param"]) == (400, "variant")
    assert (await api.get("/v1/videos/none/content")).status == 404


async def test_a_file_is_gone(api: test_utils.TestClient, service: MemoryService, tmp_path: Path) -> None:
    job = service.add()
    service.complete(job, DATA)
    service.path = tmp_path / "gone"
    response = await api.get(f"/v1/videos/{job.id}/content")
    assert (response.status, (await response.json())["error"]["code"]) == (404, "content_gone")


async def test_a_decoder_that_dies(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.complete(job, DATA)
    service.break_after = 0
    response = await api.get(f"/v1/videos/{job.id}/content")
    assert (response.status, (await response.json())["error"]["code"]) == (503, "file_unavailable")
    service.break_after = 2000
    with pytest.raises((aiohttp.ClientError, ConnectionError)):  # never a short file that looks whole
        await (await api.get(f"/v1/videos/{job.id}/content")).read()


@pytest.mark.parametrize("job", ["decoder"], indirect=True)
async def test_a_link_to_a_store(api: test_utils.TestClient, service: MemoryService, job: Job) -> None:
    """What the store could not answer for us is answered here."""
    service.link = "http://store.example/signed"
    url = f"/v1/videos/{job.id}/content"
    response = await api.get(url, headers={"Range": "bytes=1-2"}, allow_redirects=False)
    assert response.status == 307
    assert response.headers["Location"] == f"http://store.example/signed/{job.id}.mp4"
    assert response.headers["Cache-Control"] == "no-store"
    head = await api.head(url, allow_redirects=False)
    assert head.status == 200 and head.content_length == len(DATA)
    known = await api.get(url, headers={"If-None-Match": head.headers["ETag"]}, allow_redirects=False)
    assert known.status == 304
    service.table[job.id].status = Status.QUEUED
    assert (await api.get(url, allow_redirects=False)).status == 404
