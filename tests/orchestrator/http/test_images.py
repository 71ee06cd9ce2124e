"""The images endpoints: as OpenAI's where a model makes images, refused where it makes videos."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import FormData, test_utils

from orchestrator.http.errors import ApiError
from orchestrator.jobs import Job, JobError, Status
from tests.cluster import until
from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import BLUE, GREEN, png
from triptych_proto.control_pb2 import Generation, MediaFile, Model

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PAINTER = Model(
    name="org/tiny-painter",
    family="flux",
    output="image",
    formats=["png", "jpeg", "webp"],
    max_images=2,
    options=["true_cfg_scale", "strength"],
    spatial_multiple=16,
    temporal_multiple=1,
    max_pixels=1024 * 1024,
    max_frames=1,
    max_steps=50,
    defaults=Generation(width=64, height=32, num_frames=1, fps=1, num_inference_steps=4, guidance_scale=3.5),
)
SENT = png(GREEN)
WHOLE = {
    "prompt": "a cat",
    "model": MODEL.name,
    "n": 2,
    "size": "512x512",
    "quality": "high",
    "response_format": "b64_json",
    "output_format": "webp",
    "output_compression": 80,
    "background": "opaque",
    "stream": True,
    "partial_images": 2,
    "user": "u",
}


def form(*images: str, data: bytes = SENT, **fields: str) -> FormData:
    body = FormData({"prompt": "a cat", **fields}, default_to_multipart=True)
    for name in images:
        body.add_field(name, data, filename="a.png", content_type="image/png")
    return body


class Painter:
    """Completes jobs with pictures of their own, or lets ``failing`` ones fail."""

    def __init__(self, service: MemoryService, directory: Path) -> None:
        self.service = service
        self.jobs: list[Job] = []
        self.failing: dict[int, str] = {}  # by number: the error's code
        self.idle = False
        self._directory = directory
        service.content_path = lambda job: directory / job.id  # type: ignore[method-assign]

    def content(self, job: Job) -> bytes:
        return png((job.generation.seed % 256, 0, 0))

    async def work(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            for job in list(self.service.table.values()):
                if not job.status.final and job not in self.jobs and not self.idle:
                    self.jobs.append(job)
                    self._end(job, self.failing.get(len(self.jobs)))

    def _end(self, job: Job, code: str | None) -> None:
        if code == "stuck":
            return
        if code is not None:
            job.status, job.error = Status.FAILED, JobError(code, "reference image 1 is broken")
            self.service.watchers.notify(job.id)
            return
        (self._directory / job.id).write_bytes(self.content(job))
        self.service.complete(job, self.content(job))
        generation = job.generation
        job.file = MediaFile(
            name=f"{job.id}.png",
            bytes=len(self.content(job)),
            content_type=f"image/{generation.format or 'png'}",
            width=generation.width,
            height=generation.height,
            num_frames=1,
        )


@pytest.fixture
async def painter(service: MemoryService, tmp_path: Path) -> AsyncIterator[Painter]:
    service.served = [PAINTER]
    painter = Painter(service, tmp_path)
    working = asyncio.create_task(painter.work())
    yield painter
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


@pytest.fixture
async def client(api: test_utils.TestClient) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="none", base_url=str(api.make_url("/v1")), max_retries=0) as client:
        yield client


# ---- a model that makes images


async def test_generate(client: openai.AsyncOpenAI, painter: Painter, service: MemoryService) -> None:
    reply = await client.images.generate(
        prompt="a cat", n=3, size="1024x1024", extra_body={"seed": 2**64 - 2}
    )
    assert [job.generation.seed for job in painter.jobs] == [2**64 - 2, 2**64 - 1, 0]
    assert reply.data is not None
    assert [base64.b64decode(image.b64_json or "") for image in reply.data] == [
        painter.content(job) for job in painter.jobs
    ]
    generation = painter.jobs[0].generation
    assert (generation.width, generation.height, generation.num_frames) == (1024, 1024, 1)
    assert (generation.format, generation.quality) == ("", 0)
    assert (reply.output_format, reply.size, reply.created) == (
        "png",
        "1024x1024",
        int(painter.jobs[0].completed_at or 0),
    )
    assert service.references.used == 0


async def test_defaults_and_what_has_no_effect(client: openai.AsyncOpenAI, painter: Painter) -> None:
    await client.images.generate(
        prompt="a cat",
        size="auto",
        quality="high",
        background="auto",
        moderation="low",
        style="vivid",
        user="u",
        stream=False,
        partial_images=0,
    )
    (job,) = painter.jobs
    assert (job.generation.width, job.generation.height, job.generation.guidance_scale) == (64, 32, 3.5)


async def test_as_a_url(client: openai.AsyncOpenAI, painter: Painter, api: test_utils.TestClient) -> None:
    reply = await client.images.generate(
        prompt="a cat", response_format="url", output_format="jpeg", output_compression=70
    )
    assert reply.data is not None and reply.data[0].b64_json is None
    (job,) = painter.jobs
    assert (job.generation.format, job.generation.quality) == ("jpeg", 70)
    async with aiohttp.ClientSession() as session, session.get(str(reply.data[0].url)) as content:
        assert await content.read() == painter.content(job)
        assert content.headers["Content-Type"] == "image/jpeg"


async def test_edit(client: openai.AsyncOpenAI, painter: Painter, service: MemoryService) -> None:
    one = await client.images.edit(prompt="a dog", image=("a.png", SENT, "image/png"))
    two = await client.images.edit(
        prompt="a dog",
        image=[("a.png", SENT, "image/png"), ("b.png", png(BLUE), "image/png")],
        n=2,
        input_fidelity="high",
        extra_body={"strength": "0.5", "true_cfg_scale": 4},
    )
    assert one.data is not None and two.data is not None and len(two.data) == 2
    assert [service.sent[job.id] for job in painter.jobs] == [(SENT,), *([(SENT, png(BLUE))] * 2)]
    assert painter.jobs[1].generation.strength == 0.5
    assert painter.jobs[1].generation.true_cfg_scale == 4


async def test_edit_with_urls_in_json(
    painter: Painter, api: test_utils.TestClient, service: MemoryService
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(SENT).decode()}"
    for image in (url, [url], {"image_url": url}):
        assert (await api.post(EDITS, json={"prompt": "a", "image": image})).status == 200
    assert {service.sent[job.id] for job in painter.jobs} == {(SENT,)}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"stream": True}, "stream", "unsupported_field"),
        ({"partial_images": 2}, "partial_images", "unsupported_field"),
        ({"background": "transparent"}, "background", "unsupported_field"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"output_compression": 50, "output_format": "png"}, "output_compression", "invalid_value"),
        ({"size": "65x64"}, "size", "invalid_value"),
        ({"size": "2048x2048"}, "size", "invalid_value"),
        ({"num_inference_steps": 51}, "num_inference_steps", "invalid_value"),
        ({"flow_shift": 3}, "flow_shift", "unsupported_field"),
        ({"strength": 0.5}, "strength", "invalid_value"),
        ({"timeout": 5000}, "timeout", "invalid_value"),
    ],
)
async def test_what_the_model_cannot_do(
    api: test_utils.TestClient,
    painter: Painter,
    service: MemoryService,
    fields: dict[str, object],
    param: str,
    code: str,
) -> None:
    response = await api.post(GENERATIONS, json={"prompt": "a", **fields})
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, param, code)
    assert not service.table


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [("stage_failed", 422, "video_failed"), ("invalid_request", 400, "invalid_value")],
)
async def test_one_that_fails_ends_all(
    api: test_utils.TestClient,
    painter: Painter,
    service: MemoryService,
    failure: str,
    status: int,
    code: str,
) -> None:
    painter.failing = {1: "stuck", 2: failure, 3: "stuck"}
    response = await api.post(GENERATIONS, json={"prompt": "a", "n": 3})
    error = (await response.json())["error"]
    assert (response.status, error["code"]) == (status, code)
    assert "reference image 1 is broken" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert len(response.headers["X-Image-Ids"].split(", ")) == 3
    assert list(service.table) == [painter.jobs[1].id]  # the others are stopped
    assert service.waiting == 0


async def test_one_that_is_not_taken_ends_all(
    api: test_utils.TestClient, painter: Painter, service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter.idle = True
    submit, taken = service.submit, 0

    async def full(*args: Any, **kwargs: Any) -> Job:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise ApiError(429, "full", code="queue_full", headers={"Retry-After": "5"})
        return await submit(*args, **kwargs)

    monkeypatch.setattr(service, "submit", full)
    response = await api.post(GENERATIONS, json={"prompt": "a", "n": 4})
    assert (response.status, response.headers["Retry-After"]) == (429, "5")
    assert not service.table


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_client_that_leaves(
    api: test_utils.TestClient, painter: Painter, service: MemoryService, keyed: bool
) -> None:
    painter.idle = True
    headers = {"Idempotency-Key": "k"} if keyed else {}
    asking = asyncio.create_task(api.post(GENERATIONS, json={"prompt": "a", "n": 2}, headers=headers))
    await until(lambda: service.waiting == 2)
    asking.cancel()
    await until(lambda: service.waiting == 0)
    if not keyed:
        await until(lambda: not service.table)
        return
    assert len(service.table) == 2
    painter.idle = False
    again = await api.post(GENERATIONS, json={"prompt": "a", "n": 2}, headers=headers)
    assert again.status == 200
    assert again.headers["X-Image-Ids"] == ", ".join(service.table)
    other = await api.post(GENERATIONS, json={"prompt": "a", "n": 3}, headers=headers)
    assert (other.status, (await other.json())["error"]["code"]) == (409, "idempotency_key_reused")


async def test_as_a_video_with_one_frame(
    api: test_utils.TestClient, painter: Painter, service: MemoryService
) -> None:
    for fields in ({}, {"num_frames": 1}, {"seconds": "1", "fps": 1}, {"output_format": "webp"}):
        response = await api.post("/v1/videos", json={"prompt": "a", "seed": 7, **fields})
        assert response.status == 200, await response.text()
    await until(lambda: len(painter.jobs) == 4)
    assert {job.generation.num_frames for job in painter.jobs} == {1}
    assert [job.generation.format for job in painter.jobs] == ["", "", "", "webp"]
    for name, value in (("num_frames", 5), ("seconds", 4), ("fps", 24)):
        response = await api.post("/v1/videos", json={"prompt": "a", name: value})
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, name)
        assert "makes images" in error["message"]
    response = await api.get(f"/v1/videos/{painter.jobs[0].id}/content")
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Disposition"].endswith('.png"')


async def test_what_the_model_is(api: test_utils.TestClient, painter: Painter) -> None:
    (shown,) = (await (await api.get("/v1/models")).json())["data"]
    assert (shown["output"], shown["formats"], shown["sound"]) == ("image", ["png", "jpeg", "webp"], False)
    assert (shown["min_images"], shown["max_images"]) == (0, 2)
    assert shown["options"] == ["true_cfg_scale", "strength"]


# ---- a model that makes videos


async def test_a_generation(api: test_utils.TestClient) -> None:
    for fields in (WHOLE, {"prompt": "a", "size": "auto", "style": "vivid", "moderation": "low"}):
        response = await api.post(GENERATIONS, json=fields)
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (400, "model_makes_videos", "model")
        assert f"{MODEL.name} makes videos" in error["message"]


@pytest.mark.parametrize("images", [("image",), ("image[]", "image[]")])
async def test_an_edit(api: test_utils.TestClient, images: tuple[str, ...]) -> None:
    response = await api.post(EDITS, data=form(*images, input_fidelity="high"))
    assert (response.status, (await response.json())["error"]["code"]) == (400, "model_makes_videos")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", None),
        ("n", 11),
        ("n", 0),
        ("size", "large"),
        ("quality", "best"),
        ("quality", ["high"]),
        ("response_format", "png"),
        ("output_format", "gif"),
        ("output_compression", 101),
        ("background", "red"),
        ("stream", "yes"),
        ("stream", 1),
        ("partial_images", 4),
        ("mask", "x"),
        ("num_frames", 5),
    ],
)
async def test_bad_fields(api: test_utils.TestClient, field: str, value: object) -> None:
    response = await api.post(GENERATIONS, json={**WHOLE, field: value})
    assert (response.status, (await response.json())["error"]["param"]) == (400, field)


async def test_bad_edits(api: test_utils.TestClient) -> None:
    for data, param in (
        (form(), "image"),
        (form(image="https://example.org/a.png"), "model"),
        (form("image", data=b"%PDF-1.7 of which nobody reads more"), "image"),
        (form(*["image[]"] * 17), "image"),
        (form("image", "mask"), "mask"),
        (form("prompt"), "prompt"),
    ):
        response = await api.post(EDITS, data=data)
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    response = await api.post(EDITS, json={"prompt": "a", "image": "a.png"})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "image")


async def test_unknown_models_and_none(client: openai.AsyncOpenAI, service: MemoryService) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.images.generate(prompt="a", model="gpt-image-1")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.images.edit(prompt="a", image=[("a.png", SENT, "image/png")])
    assert refused.value.code == "model_makes_videos"
    service.served = []
    with pytest.raises(openai.InternalServerError) as early:
        await client.images.generate(prompt="a")
    assert early.value.status_code == 503
