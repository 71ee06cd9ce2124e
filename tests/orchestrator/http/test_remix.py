"""Remixes: another prompt, the rest as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from aiohttp import test_utils

from orchestrator.jobs import Job
from tests.orchestrator.http.service import MODEL, MemoryService

FIELDS: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "dull",
    "size": "128x64",
    "num_frames": 13,
    "fps": 8,
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "seed": 2**60,
    "priority": 3,
}


@pytest.fixture
async def source(api: test_utils.TestClient, service: MemoryService) -> Job:
    video = await (await api.post("/v1/videos", json=FIELDS)).json()
    job = service.table[video["id"]]
    service.complete(job)
    return job


async def refusal(api: test_utils.TestClient, job_id: str, **fields: object) -> tuple[int, str, str | None]:
    response = await api.post(f"/v1/videos/{job_id}/remix", json={"prompt": "a dog", **fields})
    error = (await response.json())["error"]
    return response.status, error["code"], error["param"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # every videos method has one
async def test_it_differs_in_its_prompt_only(
    api: test_utils.TestClient, service: MemoryService, source: Job
) -> None:
    async with openai.AsyncOpenAI(api_key="none", base_url=str(api.make_url("/v1"))) as client:
        video = await client.videos.remix(source.id, prompt="a dog")
    assert (video.remixed_from_video_id, video.prompt, video.status) == (source.id, "a dog", "queued")
    job = service.table[video.id]
    assert (job.remixed_from, job.model, job.priority) == (source.id, MODEL.name, 0)
    job.generation.prompt = source.generation.prompt
    assert job.generation == source.generation
    service.complete(job)
    shown = await (await api.get(f"/v1/videos/{job.id}")).json()
    assert shown["remixed_from_video_id"] == source.id


@pytest.mark.parametrize("form", [False, True])
async def test_what_can_be_said(
    api: test_utils.TestClient, service: MemoryService, source: Job, form: bool
) -> None:
    fields = {"prompt": "a dog", "seed": "5", "priority": "2", "timeout": "9", "user": "u"}
    url = f"/v1/videos/{source.id}/remix"
    response = await api.post(url, **({"data": fields} if form else {"json": fields}))
    job = service.table[(await response.json())["id"]]
    assert (job.generation.seed, job.priority, job.deadline) == (5, 2, job.created_at + 9)


async def test_what_is_refused(api: test_utils.TestClient, service: MemoryService, source: Job) -> None:
    assert await refusal(api, source.id, size="64x32") == (400, "invalid_value", "size")
    assert await refusal(api, source.id, prompt=" ") == (400, "invalid_value", "prompt")
    assert await refusal(api, source.id, nonsense=1) == (400, "unknown_field", "nonsense")
    assert await refusal(api, "video_none") == (404, "video_not_found", "id")
    source.model = "gone"
    assert await refusal(api, source.id) == (404, "model_not_found", "model")
    assert list(service.table) == [source.id]


async def test_only_what_is_completed_can_be_remixed(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    job = service.add()
    response = await api.post(f"/v1/videos/{job.id}/remix", json={"prompt": "a"})
    assert (response.status, response.headers["x-should-retry"]) == (409, "false")
    assert (await response.json())["error"]["code"] == "video_not_ready"
    service.fail(job)
    assert await refusal(api, job.id) == (409, "video_failed", None)


async def test_keys_of_remixes(api: test_utils.TestClient, service: MemoryService, source: Job) -> None:
    headers = {"Idempotency-Key": "k"}
    url = f"/v1/videos/{source.id}/remix"
    answers = await asyncio.gather(
        *(api.post(url, json={"prompt": "a dog"}, headers=headers) for _ in range(2))
    )
    assert len({(await answer.json())["id"] for answer in answers}) == 1
    # The same words, but not a remix.
    assert (await api.post("/v1/videos", json={"prompt": "a dog"}, headers=headers)).status == 409
    assert len(service.table) == 2


@pytest.mark.parametrize("path", ["edits", "extensions", "characters"])
async def test_what_no_model_can_do(api: test_utils.TestClient, path: str) -> None:
    response = await api.post(f"/v1/videos/{path}", data={"prompt": "a"})
    assert (response.status, (await response.json())["error"]["code"]) == (404, "not_supported")
