"""The videos endpoints: states, pages, deletion."""

from __future__ import annotations

import pytest
from aiohttp import test_utils

from orchestrator.http.errors import ApiError
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MODEL, MemoryService


async def test_create_answers_the_queued_job(api: test_utils.TestClient) -> None:
    response = await api.post("/v1/videos", json={"prompt": "a cat", "seed": 5, "seconds": "4"})
    assert response.status == 200
    video = await response.json()
    assert video["object"] == "video"
    assert (video["status"], video["progress"], video["seed"]) == ("queued", 0, 5)
    assert (video["seconds"], video["num_frames"], video["fps"]) == ("4.0625", 65, 16)
    assert video["size"] == "64x32"
    assert isinstance(video["created_at"], int)
    assert video["completed_at"] is None and "url" not in video


async def test_a_completed_job(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.complete(job)
    video = await (await api.get(f"/v1/videos/{job.id}")).json()
    assert (video["status"], video["progress"], video["error"]) == ("completed", 100, None)
    assert video["url"] == str(api.make_url(f"/v1/videos/{job.id}/content"))
    assert (video["inference_time_s"], video["peak_memory_mb"]) == (0.75, 3)
    assert video["stage_durations"] == {"queue": 1.0, "transfer": 0.75}
    assert video["phases"] == [
        {"name": "queue", "seconds": 1.0},
        {"name": "transfer", "seconds": 0.25, "url": "a:1"},
        {"name": "transfer", "seconds": 0.5, "url": "b:2"},
    ]


@pytest.mark.parametrize("options", [HttpOptions(public_url="https://video.example/api/")])
async def test_the_public_url(
    api: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    job = service.add()
    service.complete(job)
    video = await (await api.get(f"/v1/videos/{job.id}")).json()
    assert video["url"] == f"https://video.example/api/v1/videos/{job.id}/content"


async def test_a_failed_job_is_no_failed_poll(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.fail(job)
    response = await api.get(f"/v1/videos/{job.id}")
    assert response.status == 200
    video = await response.json()
    assert (video["status"], video["error"]) == (
        "failed",
        {"code": "stage_failed", "message": "denoise failed"},
    )


async def test_pages(api: test_utils.TestClient, service: MemoryService) -> None:
    ids = [service.add().id for _ in range(5)]

    async def pages(order: str) -> list[list[str]]:
        found, query = [], {"limit": "2", "order": order}
        while True:
            page = await (await api.get("/v1/videos", params=query)).json()
            found.append([video["id"] for video in page["data"]])
            assert (page["first_id"], page["last_id"]) == (found[-1][0], found[-1][-1])
            if not page["has_more"]:
                return found
            query["after"] = page["last_id"]

    assert await pages("asc") == [ids[:2], ids[2:4], ids[4:]]
    assert await pages("desc") == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    newest = await (await api.get("/v1/videos")).json()
    assert newest["data"][0]["id"] == ids[-1]


async def test_an_empty_list(api: test_utils.TestClient) -> None:
    page = await (await api.get("/v1/videos")).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=no", "after"),
    ],
)
async def test_bad_pages(api: test_utils.TestClient, query: str, param: str) -> None:
    response = await api.get(f"/v1/videos?{query}")
    assert (response.status, (await response.json())["error"]["param"]) == (400, param)


async def test_delete(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    response = await api.delete(f"/v1/videos/{job.id}")
    assert await response.json() == {"id": job.id, "object": "video.deleted", "deleted": True}
    assert (await api.delete(f"/v1/videos/{job.id}")).status == 404
    assert not service.table


async def test_refusals_at_the_door(api: test_utils.TestClient, service: MemoryService) -> None:
    service.refusal = ApiError(429, "queue full", code="queue_full", headers={"Retry-After": "3"})
    response = await api.post("/v1/videos", json={"prompt": "a"})
    assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert (await response.json())["error"]["type"] == "rate_limit_error"
    service.served = []
    response = await api.post("/v1/videos", json={"prompt": "a"})
    assert response.status == 503 and int(response.headers["Retry-After"]) > 0
    service.served = [MODEL]
    response = await api.post("/v1/videos", json={"prompt": "a", "model": "sora-2"})
    assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")
