"""What the real clients send, byte for byte as recorded, still means what it meant.

The clients themselves move on; these requests (see record.py) are the contract that stays.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job
from tests.clients.record import FIELDS, FPS, JOB, PNG, PROMPT, WIRE
from tests.cluster import until
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MODEL, MemoryService
from triptych_proto.control_pb2 import Generation, Model

WANTED = Generation(
    prompt=PROMPT,
    width=64,
    height=32,
    num_frames=17,  # 2 seconds at 8 frames per second, and one more than a multiple of 4
    fps=FPS,
    **{name: value for name, value in FIELDS.items() if name != "priority"},
)
DEFAULT = Generation(prompt="a cat")
DEFAULT.MergeFrom(MODEL.defaults)


@dataclass(frozen=True)
class Refusal:
    status: int
    code: str
    param: str | None = None


# What a call means, whichever client makes it. MODEL makes videos, from text.
CREATE = ("create", "json", "form", "nested-json", "urlencoded")
REFUSED = {
    "create-file": Refusal(400, "unsupported_field", "input_reference"),
    "create-url": Refusal(400, "unsupported_field", "input_reference"),
    "nested": Refusal(400, "invalid_value", "extra_params"),  # Python's spelling of an object is not JSON
    "edit": Refusal(404, "not_supported"),
    "extend": Refusal(404, "not_supported"),
    "character": Refusal(404, "not_supported"),
    "image": Refusal(400, "model_makes_videos", "model"),
    "image-edit": Refusal(400, "model_makes_videos", "model"),
}
OTHER = {"create-prompt", "poll", "list", "content", "remix", "delete", "models", "metrics"}

RECORDED = sorted(path.stem for path in WIRE.glob("*.http"))


def call_of(name: str) -> tuple[str, str]:
    """Client and call of a recording."""
    client = next(
        client for client in ("python-2", "python-3", "node", "curl", "aiperf") if name.startswith(client)
    )
    return client, name[len(client) + 1 :]


def recordings(*calls: str) -> list[str]:
    return [name for name in RECORDED if call_of(name)[1] in calls]


async def reply_to(api: test_utils.TestClient, name: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and body, for the recorded bytes as they are."""
    reader, writer = await asyncio.open_connection(api.host, api.port)
    request = (WIRE / f"{name}.http").read_bytes()
    writer.write(request)
    try:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
        line, *fields = head.strip().split("\r\n")
        headers = {key.lower(): value for key, value in (field.split(": ", 1) for field in fields)}
        length = 0 if request.startswith(b"HEAD ") else int(headers["content-length"])
        body = await asyncio.wait_for(reader.readexactly(length), 20)
    finally:
        writer.close()
    return int(line.split()[1]), headers, body


@pytest.fixture
def service(tmp_path: Path) -> MemoryService:
    """With the video that the recordings name, completed."""
    service = MemoryService(tmp_path / "previews")
    job = Job.new(MODEL.name, WANTED)
    job.id = JOB
    service.table[JOB] = job
    service.complete(job, b"the file")
    return service


@pytest.fixture
async def api(service: MemoryService) -> AsyncIterator[test_utils.TestClient]:
    conformance = Conformance()
    app = conformance.watch(create_app(service, HttpOptions()))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        yield client
    assert conformance.problems == []


def test_each_recording_has_a_meaning() -> None:
    calls = {call_of(name)[1] for name in RECORDED}
    assert calls == {*CREATE, *REFUSED, *OTHER}
    clients = {call_of(name)[0] for name in recordings(*CREATE)}
    assert clients == {"python-2", "python-3", "node", "curl", "aiperf"}


@pytest.mark.parametrize("name", recordings(*CREATE))
async def test_one_request_in_every_spelling(
    api: test_utils.TestClient,
    service: MemoryService,
    name: str,
) -> None:
    status, _, body = await reply_to(api, name)
    assert status == 200, body
    job = service.table[json.loads(body)["id"]]
    assert (job.model, job.priority, job.remixed_from) == (MODEL.name, 1, None)
    assert job.generation == WANTED


async def test_the_idempotency_key_is_the_same_request_for_all_clients(
    api: test_utils.TestClient,
    service: MemoryService,
) -> None:
    names = [name for name in recordings("create") if not name.startswith("aiperf")]
    ids = {json.loads((await reply_to(api, name))[2])["id"] for name in names}
    assert len(names) == 3 and len(ids) == 1


@pytest.mark.parametrize("name", recordings("create-prompt"))
async def test_a_prompt_alone(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    status, _, body = await reply_to(api, name)
    assert status == 200, body
    generation = service.table[json.loads(body)["id"]].generation
    generation.ClearField("seed")  # drawn
    assert generation == DEFAULT


@pytest.mark.parametrize("name", recordings(*REFUSED))
async def test_refusals(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    status, headers, body = await reply_to(api, name)
    error = json.loads(body)["error"]
    assert Refusal(status, error["code"], error["param"]) == REFUSED[call_of(name)[1]]
    assert error["message"] and error["type"] == "invalid_request_error" and headers["x-request-id"]
    assert list(service.table) == [JOB]


@pytest.mark.parametrize("name", recordings("create-file"))
async def test_a_reference_image(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    service.served = [serving(max_images=1)]
    status, _, body = await reply_to(api, name)
    assert status == 200, body
    assert service.sent[json.loads(body)["id"]] == (PNG,)


@pytest.mark.parametrize("name", recordings("image", "image-edit"))
async def test_images(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    defaults = Generation(num_frames=1)
    service.served = [serving(output="image", max_images=2, max_pixels=1024 * 1024, defaults=defaults)]
    replying = asyncio.ensure_future(reply_to(api, name))
    await until(lambda: len(service.table) == 2)
    job = service.table[list(service.table)[1]]
    service.complete(job, PNG)
    assert job.file is not None
    job.file.content_type = "image/png"
    status, headers, body = await replying
    assert (status, headers["x-image-ids"]) == (200, job.id)
    assert json.loads(body)["data"] == [{"b64_json": base64.b64encode(PNG).decode()}]
    edit = call_of(name)[1] == "image-edit"
    assert service.sent[job.id] == ((PNG, PNG) if edit else ())
    assert edit or (job.generation.width, job.generation.height) == (1024, 1024)


def serving(**facts: Any) -> Model:
    model = Model()
    model.CopyFrom(MODEL)
    model.MergeFrom(Model(**facts))
    return model


@pytest.mark.parametrize("name", recordings("poll"))
async def test_polls(api: test_utils.TestClient, name: str) -> None:
    status, headers, body = await reply_to(api, name)
    video = json.loads(body)
    assert (status, video["id"], video["status"], video["progress"]) == (200, JOB, "completed", 100)
    assert headers["content-type"].startswith("application/json")
    assert video["url"] == f"http://recorded/v1/videos/{JOB}/content"


@pytest.mark.parametrize("name", recordings("content"))
async def test_downloads(api: test_utils.TestClient, name: str) -> None:
    status, headers, body = await reply_to(api, name)
    assert (status, headers["content-type"], body) == (200, "video/mp4", b"the file")


@pytest.mark.parametrize("name", recordings("list"))
async def test_lists(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    later = [service.add().id for _ in range(3)]
    status, _, body = await reply_to(api, name)
    page = json.loads(body)
    assert (status, page["object"], page["has_more"]) == (200, "list", True)
    assert [video["id"] for video in page["data"]] == later[:2]
    assert (page["first_id"], page["last_id"]) == (later[0], later[1])


@pytest.mark.parametrize("name", recordings("remix"))
async def test_remixes(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    status, _, body = await reply_to(api, name)
    assert status == 200, body
    job = service.table[json.loads(body)["id"]]
    expected = Generation()
    expected.CopyFrom(WANTED)
    expected.prompt = "a dog"
    assert job.remixed_from == JOB and job.generation == expected


@pytest.mark.parametrize("name", recordings("delete"))
async def test_deletions(api: test_utils.TestClient, service: MemoryService, name: str) -> None:
    status, _, body = await reply_to(api, name)
    assert (status, json.loads(body)) == (200, {"id": JOB, "object": "video.deleted", "deleted": True})
    assert not service.table


@pytest.mark.parametrize("name", recordings("models"))
async def test_models(api: test_utils.TestClient, name: str) -> None:
    status, _, body = await reply_to(api, name)
    (model,) = json.loads(body)["data"]
    assert (status, model["id"], model["object"]) == (200, MODEL.name, "model")


@pytest.mark.parametrize("name", recordings("metrics"))
async def test_metrics(api: test_utils.TestClient, name: str) -> None:
    status, headers, _ = await reply_to(api, name)
    assert status == 200 and headers["content-type"].startswith("text/plain")
