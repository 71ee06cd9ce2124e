"""Requests for several videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils

from orchestrator.http.app import create_app
from orchestrator.http.errors import ApiError
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job
from tests.cluster import Cluster, finished
from tests.orchestrator.http.service import MemoryService


@pytest.mark.parametrize("name", ["n", "num_outputs_per_prompt"])
async def test_each_is_a_job_with_a_seed_of_its_own(
    api: test_utils.TestClient, service: MemoryService, name: str
) -> None:
    body = {"prompt": "a cat", "seed": 2**64 - 2, name: 3}
    reply = await (await api.post("/v1/videos", json=body)).json()
    assert reply["video_ids"] == list(service.table) and reply["id"] == reply["video_ids"][0]
    assert [job.generation.seed for job in service.table.values()] == [2**64 - 2, 2**64 - 1, 0]
    for job in service.table.values():
        assert job.generation.prompt == "a cat"
        assert "video_ids" not in await (await api.get(f"/v1/videos/{job.id}")).json()


async def test_without_a_seed_they_differ_too(api: test_utils.TestClient, service: MemoryService) -> None:
    await api.post("/v1/videos", json={"prompt": "a cat", "n": 10})
    assert len({job.generation.seed for job in service.table.values()}) == 10


async def test_one_is_as_if_nothing_was_said(api: test_utils.TestClient) -> None:
    reply = await (await api.post("/v1/videos", json={"prompt": "a cat", "n": 1})).json()
    assert "video_ids" not in reply


async def test_a_repeated_request_gets_all_of_the_first(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    body, headers = {"prompt": "a cat", "n": 3}, {"Idempotency-Key": "k"}
    first = await (await api.post("/v1/videos", json=body, headers=headers)).json()
    again = await (await api.post("/v1/videos", json=body, headers=headers)).json()
    assert again == first and len(service.table) == 3
    fewer = await api.post("/v1/videos", json={**body, "n": 2}, headers=headers)
    assert (fewer.status, (await fewer.json())["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(service.table) == 3


@pytest.mark.parametrize("keyed", [False, True])
async def test_all_or_none_are_taken(
    api: test_utils.TestClient, service: MemoryService, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    submit = service.submit

    async def full(*args: Any, **kwargs: Any) -> Job:
        if len(service.table) == 2:
            raise ApiError(429, "full", code="queue_full", headers={"Retry-After": "5"})
        return await submit(*args, **kwargs)

    body, headers = {"prompt": "a cat", "n": 3}, {"Idempotency-Key": "k"} if keyed else {}
    with monkeypatch.context() as patched:
        patched.setattr(service, "submit", full)
        response = await api.post("/v1/videos", json=body, headers=headers)
    assert (response.status, response.headers["Retry-After"]) == (429, "5")
    before = list(service.table)
    assert len(before) == (2 if keyed else 0)  # with the key the rest is asked for
    reply = await (await api.post("/v1/videos", json=body, headers=headers)).json()
    assert len(reply["video_ids"]) == 3 and reply["video_ids"][: len(before)] == before


async def test_a_reply_that_is_a_file_has_one(api: test_utils.TestClient, service: MemoryService) -> None:
    response = await api.post("/v1/videos/sync", json={"prompt": "a cat", "n": 2})
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, "n", "invalid_value")
    assert not service.table


async def test_each_shows_its_own_frames(tmp_path: Path) -> None:
    """The second of two is what a request with its seed alone would make."""
    async with Cluster(tmp_path) as cluster:
        server = test_utils.TestServer(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(server) as api:
            two = await (await api.post("/v1/videos", json={"prompt": "p", "seed": 7, "n": 2})).json()
            alone = await (await api.post("/v1/videos", json={"prompt": "p", "seed": 8})).json()
            jobs = [await cluster.orchestrator.find(name) for name in (*two["video_ids"], alone["id"])]
            await finished(*[job for job in jobs if job is not None])
            hashes = [job.file.frames_checksum for job in jobs if job is not None and job.file is not None]
    assert len(hashes) == 3 and hashes[0] != hashes[1] == hashes[2]
