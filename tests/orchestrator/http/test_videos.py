"""The videos endpoints: states, pages, deletion."""

from __future__ import annotations

import pytest
from aiohttp import test_utils
from yarl import URL

from orchestrator.http.errors import ApiError
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Pace, Status
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
    assert (video["inference_time_s"], video["peak_memory_mb"]) == (4.5, 3)
    assert video["stage_durations"] == {
        "queue": 2.0,
        "encode": 0.5,
        "transfer": 0.75,
        "denoise": 2.0,
        "decode": 1.0,
        "save": 0.25,
    }
    assert video["phases"][0] == {"name": "queue", "seconds": 2.0}
    assert video["phases"][2] == {"name": "transfer", "seconds": 0.25, "url": "c:3"}
    assert (video["expires_at"], video["step"], video["seconds_left"]) == (None, None, None)


async def test_when_a_job_expires(api: test_utils.TestClient, service: MemoryService) -> None:
    service.retention_seconds = 3600.0
    job = service.add()
    assert (await (await api.get(f"/v1/videos/{job.id}")).json())["expires_at"] is None
    service.complete(job)
    job.completed_at = 1000.5
    assert (await (await api.get(f"/v1/videos/{job.id}")).json())["expires_at"] == 4600


async def test_the_pace_of_a_running_job(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    names = ("step", "total_steps", "steps_per_second", "seconds_left")

    async def shown() -> list[object]:
        video = await (await api.get(f"/v1/videos/{job.id}")).json()
        return [video[name] for name in names]

    assert await shown() == [None] * 4
    job.status = Status.IN_PROGRESS
    assert await shown() == [None] * 4
    job.pace = Pace("denoise", 0, 4)
    assert await shown() == [0, 4, None, None]
    job.pace = Pace("denoise", 3, 4, 0.5, 2.25)
    assert await shown() == [3, 4, 0.5, 2.25]


@pytest.mark.parametrize("form", [False, True])
async def test_priority_and_timeout(api: test_utils.TestClient, service: MemoryService, form: bool) -> None:
    plain = await (await api.post("/v1/videos", json={"prompt": "a"})).json()
    assert (plain["priority"], plain["deadline"]) == (0, None)
    fields = {"prompt": "a", "priority": "-10", "timeout": "2.5"}
    response = await api.post("/v1/videos", **({"data": fields} if form else {"json": fields}))
    video = await response.json()
    job = service.table[video["id"]]
    assert job.priority == video["priority"] == -10
    assert job.deadline == job.created_at + 2.5
    assert video["deadline"] == int(job.deadline)


@pytest.mark.parametrize("options", [HttpOptions(max_timeout_seconds=60.0)])
async def test_a_timeout_beyond_the_servers(api: test_utils.TestClient, options: HttpOptions) -> None:
    assert (await api.post("/v1/videos", json={"prompt": "a", "timeout": 60})).status == 200
    response = await api.post("/v1/videos", json={"prompt": "a", "timeout": 60.5})
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "timeout")
    assert "60 seconds" in error["message"]


async def test_a_job_of_another_orchestrator(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.complete(job, b"video")
    service.stored_elsewhere[job.id] = service.table.pop(job.id)
    assert (await (await api.get(f"/v1/videos/{job.id}")).json())["status"] == "completed"
    assert await (await api.get(f"/v1/videos/{job.id}/content")).read() == b"video"


@pytest.mark.parametrize("job_id", ["a%00b", "%ED%A0%80", "x" * 65, "a%2Fb", "'"])
async def test_ids_that_no_job_has_are_not_looked_up(
    api: test_utils.TestClient, service: MemoryService, job_id: str
) -> None:
    url = URL(str(api.make_url("/v1/videos/")) + job_id, encoded=True)
    for method in ("GET", "DELETE"):
        async with api.session.request(method, url) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (404, "id")
    assert not service.lookups


async def test_the_timeline(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    url = f"/v1/videos/{job.id}/timeline"
    timeline = await (await api.get(url)).json()
    assert timeline == {
        "object": "video.timeline",
        "id": job.id,
        "status": "queued",
        "created_at": job.created_at,
        "started_at": None,
        "completed_at": None,
        "attempts": [],
    }
    service.complete(job)
    timeline = await (await api.get(url)).json()
    assert (timeline["status"], timeline["completed_at"]) == ("completed", job.completed_at)
    attempts = timeline["attempts"]
    tries = [(a["stage"], a["try"], a["outcome"]) for a in attempts]
    assert tries == [
        ("encode", 1, "done"),
        ("denoise", 1, "lost"),
        ("denoise", 2, "done"),
        ("decode", 1, "done"),
    ]
    assert attempts[3] == {
        "stage": "decode",
        "try": 1,
        "url": "d:4",
        "incarnation": "11aa",
        "outcome": "done",
        "reason": "",
        "queued_at": job.created_at + 5,
        "started_at": job.created_at + 5.5,
        "inputs_at": job.created_at + 5.75,
        "ended_at": job.created_at + 6.5,
        "queue_seconds": 0.5,
        "waiting_seconds": 0,
        "transfer_seconds": 0.5,
        "transfer_bytes": 0,
        "engine": "zmq",
        "compute_seconds": 1.0,
        "batch": 1,
        "save_seconds": 0.25,
    }
    assert (await api.get("/v1/videos/none/timeline")).status == 404


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
