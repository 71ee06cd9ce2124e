"""``Idempotency-Key``: over HTTP, and against a real orchestrator at once and after its restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import FormData, test_utils

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from tests.cluster import Cluster, finished
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
BODY = {"prompt": "a cat", "seconds": "1", "size": "64x32"}


async def create(api: test_utils.TestClient, key: str = "k", **fields: object) -> tuple[int, str]:
    """The status, and the job's id or the error's code."""
    headers = {"Idempotency-Key": key}
    response = await api.post("/v1/videos", json={"prompt": "a cat", **fields}, headers=headers)
    answer = await response.json()
    return response.status, answer["id"] if response.status == 200 else answer["error"]["code"]


async def test_a_repeated_request_gets_the_first_job(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    first = await (await api.post("/v1/videos", json=BODY, headers=KEY)).json()
    for encoded in ({"data": BODY}, {"data": FormData(BODY, default_to_multipart=True)}, {"json": BODY}):
        response = await api.post("/v1/videos", **encoded, headers=KEY)  # type: ignore[arg-type]
        assert (response.status, (await response.json())["id"]) == (200, first["id"])
    await api.post("/v1/videos", json=BODY)
    await api.post("/v1/videos", json=BODY, headers={"Idempotency-Key": "another"})
    assert len(service.table) == 3


async def test_it_is_answered_whatever_has_changed_since(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    _, job_id = await create(api)
    service.complete(service.table[job_id])
    service.served = []
    assert await create(api) == (200, job_id)
    await api.delete(f"/v1/videos/{job_id}")
    assert await create(api) == (503, "not_ready")


async def test_another_request_with_the_same_key(api: test_utils.TestClient, service: MemoryService) -> None:
    await create(api)
    response = await api.post("/v1/videos", json={"prompt": "a dog"}, headers={"Idempotency-Key": "k"})
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (
        409,
        "idempotency_key_reused",
        "Idempotency-Key",
    )
    assert response.headers["x-should-retry"] == "false"
    assert len(service.table) == 1


async def test_keys_of_different_clients_are_different(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    for token in ("a", "b"):
        headers = {**KEY, "Authorization": f"Bearer {token}"}
        assert (await api.post("/v1/videos", json=BODY, headers=headers)).status == 200
    assert len(service.table) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel"])
async def test_keys_are_bounded(api: test_utils.TestClient, service: MemoryService, key: str) -> None:
    assert await create(api, key) == (400, "invalid_value")
    assert not service.table
    assert (await create(api, "x" * 255))[0] == 200


@asynccontextmanager
async def serve(cluster: Cluster, conformance: Conformance) -> AsyncIterator[test_utils.TestClient]:
    app = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        yield client


async def test_at_once_and_after_a_restart(tmp_path: Path, conformance: Conformance) -> None:
    async with Cluster(tmp_path) as cluster:
        async with serve(cluster, conformance) as api:
            answers = await asyncio.gather(*(create(api, f"k{n % 2}") for n in range(20)))
            assert {status for status, _ in answers} == {200}
            first, second = {job_id for _, job_id in answers[::2]}, {job_id for _, job_id in answers[1::2]}
            assert len(first) == len(second) == 1 and first != second
            await finished(*cluster.orchestrator._jobs.values())
        await cluster.orchestrator.close()
        await cluster.start_orchestrator()
        async with serve(cluster, conformance) as api:
            assert await create(api, "k0") == (200, *first)
            assert await create(api, "k0", seed=1) == (409, "idempotency_key_reused")
            assert len(cluster.orchestrator._jobs) == 2
            await api.delete(f"/v1/videos/{next(iter(first))}")
            status, job_id = await create(api, "k0", seed=1)  # the key went with its job
            assert status == 200 and job_id not in first | second
        await cluster.slots_back()


async def test_two_orchestrators_on_one_database(
    tmp_path: Path, postgres_url: str, conformance: Conformance
) -> None:
    async with (
        Cluster(tmp_path / "a", database_url=postgres_url, name="a") as one,
        Cluster(tmp_path / "b", database_url=postgres_url, name="b") as other,
        serve(one, conformance) as api_one,
        serve(other, conformance) as api_other,
    ):
        answers = await asyncio.gather(*(create(api, "k") for api in (api_one, api_other) for _ in range(5)))
        assert len(set(answers)) == 1
        status, job_id = answers[0]
        assert status == 200
        jobs = [await cluster.orchestrator.finished(job_id) for cluster in (one, other)]
        assert [job.status.value for job in jobs if job] == ["completed", "completed"]
