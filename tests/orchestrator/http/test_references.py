"""Reference images at the door: every way to send them, and what is refused before anything is stored."""

from __future__ import annotations

import asyncio
import base64
import json

import openai
import pytest
from aiohttp import test_utils

from orchestrator.http.options import HttpOptions
from orchestrator.reference_memory import ReferenceMemory
from tests.cluster import until
from tests.orchestrator.http.reference_requests import (
    JPEG,
    SENT,
    VIDEOS,
    WEBP,
    data_url,
    form,
    model,
    refused,
    sent,
)
from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import animated, chunk, png_of


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(max_body_bytes=1 << 20)


@pytest.fixture(autouse=True)
def takes_images(service: MemoryService) -> None:
    service.served = [model()]


# ---- ways to send them


@pytest.mark.parametrize("data", [SENT, JPEG, WEBP])
async def test_a_file(api: test_utils.TestClient, service: MemoryService, data: bytes) -> None:
    for name in ("input_reference", "image", "input_reference[]", "image[]", "extra_body[input_reference]"):
        assert await sent(api, service, data=form((name, data))) == (data,)


async def test_several_files_in_order(api: test_utils.TestClient, service: MemoryService) -> None:
    for name in ("image[]", "input_references[]"):
        assert await sent(api, service, data=form((name, SENT), (name, JPEG))) == (SENT, JPEG)


@pytest.mark.parametrize(
    "value",
    [
        data_url(SENT),
        data_url(SENT, "image/jpeg"),  # what it claims to be does not matter
        data_url(SENT, "image/png;charset=utf-8"),
        f" {data_url(SENT)}\n",
        {"image_url": data_url(SENT)},
        {"url": data_url(SENT)},
        {"type": "image_url", "image_url": {"url": data_url(SENT), "detail": "high"}},
        [data_url(SENT)],
        [{"image_url": data_url(SENT)}],
        json.dumps({"image_url": data_url(SENT)}),
    ],
)
async def test_spellings(api: test_utils.TestClient, service: MemoryService, value: object) -> None:
    for name in ("input_reference", "input_references", "image", "image_reference", "reference_url"):
        assert await sent(api, service, json={"prompt": "a", name: value}) == (SENT,)


async def test_in_forms(api: test_utils.TestClient, service: MemoryService) -> None:
    for fields in (
        {"input_reference[image_url]": data_url(SENT)},
        {"input_reference": data_url(SENT)},
        {"input_reference": json.dumps({"image_url": data_url(SENT)})},
        {"image[]": data_url(SENT)},
        {"reference_url": data_url(SENT)},
    ):
        assert await sent(api, service, data={"prompt": "a", **fields}) == (SENT,)
        assert await sent(api, service, data=form(**fields)) == (SENT,)


async def test_nothing_is_none(api: test_utils.TestClient, service: MemoryService) -> None:
    for value in (None, "", False, "false", [], [None]):
        body = {"prompt": "a", "input_reference": value}
        assert await sent(api, service, json=body, headers={"Idempotency-Key": "k"}) == ()
    assert len(service.table) == 1  # the same as without it


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # every videos method has one
async def test_the_openai_client(api: test_utils.TestClient, service: MemoryService) -> None:
    async with openai.AsyncOpenAI(api_key="none", base_url=str(api.make_url("/v1")), max_retries=0) as client:
        video = await client.videos.create(prompt="a", input_reference=SENT)
        assert service.sent[video.id] == (SENT,)
        video = await client.videos.create(prompt="a", input_reference=("x.webp", WEBP, "image/webp"))
        assert service.sent[video.id] == (WEBP,)
        video = await client.videos.create(prompt="a", extra_body={"reference_url": data_url(JPEG)})
        assert service.sent[video.id] == (JPEG,)


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd", "a\\..\\b.png", "é" * 200, "x.svg", "con.png; name=prompt"]
)
async def test_names_of_files_mean_nothing(
    api: test_utils.TestClient, service: MemoryService, filename: str
) -> None:
    data = form(("input_reference", SENT), filename=filename)
    assert await sent(api, service, data=data) == (SENT,)


# ---- what a model takes


@pytest.mark.parametrize(
    ("facts", "count", "problem"),
    [
        ({"max_images": 1}, 1, ""),
        ({"max_images": 1}, 2, "takes at most 1 reference images, not 2"),
        ({"min_images": 1}, 0, "needs a reference image, and there are 0"),
        ({"min_images": 2}, 1, "needs 2 reference images, and there are 1"),
        ({"min_images": 2}, 2, ""),
    ],
)
async def test_as_many_as_the_model_takes(
    api: test_utils.TestClient, service: MemoryService, facts: dict[str, int], count: int, problem: str
) -> None:
    service.served = [model(**facts)]
    body = {"prompt": "a", "input_reference": [data_url(SENT)] * count}
    if not problem:
        assert await sent(api, service, json=body) == (SENT,) * count
        return
    status, param, code, message = await refused(api, service, json=body)
    assert (status, param, code) == (400, "input_reference", "invalid_value")
    assert problem in message and MODEL.name in message


async def test_a_model_that_takes_none(api: test_utils.TestClient, service: MemoryService) -> None:
    service.served = [MODEL]
    status, param, code, message = await refused(api, service, data=form(("image[]", SENT)))
    assert (status, param, code) == (400, "image", "unsupported_field")
    assert "takes no reference images" in message


async def test_one_of_the_names(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"prompt": "a", "input_reference": data_url(SENT), "image": data_url(JPEG)}
    status, param, _, message = await refused(api, service, json=body)
    assert (status, param) == (400, "image")
    assert "contradicts input_reference" in message


# ---- what is no image


@pytest.mark.parametrize(
    "value",
    [
        "x",
        17,
        0,
        True,
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://host/a.png",
        base64.b64encode(SENT).decode(),
        "data:",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,%%%%",
        "data:image/png;base64,iVBORw0KGgo=\n=",
        "data:image/png;base64," + base64.b64encode(SENT).decode()[:-3],
        "data:" + "a" * 1000 + ";base64," + base64.b64encode(SENT).decode(),
        data_url(b"<svg/>", "image/svg+xml"),
        data_url(animated("GIF"), "image/png"),
        data_url(b"%PDF-1.7"),
        {"image_url": "x"},
        {"image_url": '{"image_url": "data:"}'},
        {"image_url": {"url": {"url": data_url(SENT)}}},
        {"image_url": ["x"]},
        {},
        [[data_url(SENT)]],
        "{'image_url': 'x'}",
        "{" * 5000,
        [data_url(SENT)] * 17,
    ],
)
async def test_garbage(api: test_utils.TestClient, service: MemoryService, value: object) -> None:
    status, param, code, message = await refused(api, service, json={"prompt": "a", "input_reference": value})
    assert (status, param, code) == (400, "input_reference", "invalid_value")
    assert len(message) < 400


async def test_a_file_id(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"prompt": "a", "input_reference[file_id]": "file-1"}
    assert (await refused(api, service, data=body))[:3] == (400, "input_reference", "unsupported_field")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", animated("GIF")]
)
async def test_other_files(api: test_utils.TestClient, service: MemoryService, data: bytes) -> None:
    status, param, _, message = await refused(api, service, data=form(("input_reference", data)))
    assert (status, param) == (400, "input_reference")
    assert "not a PNG, JPEG or WebP file" in message


async def test_ten_thousand_parts(api: test_utils.TestClient, service: MemoryService) -> None:
    parts = [("image[]", b"")] * 10_000
    assert (await refused(api, service, data=form(*parts)))[0] == 400
    assert (await refused(api, service, json={"prompt": "a", "image": [""] * 10_000 + ["x"] * 17}))[0] == 400


async def test_the_orchestrator_decodes_nothing(api: test_utils.TestClient, service: MemoryService) -> None:
    bomb = png_of(60_000, 60_000, chunk(b"IDAT", b"no pixels"))
    assert await sent(api, service, data=form(("input_reference", bomb))) == (bomb,)


# ---- sizes


@pytest.mark.parametrize("options", [HttpOptions(max_body_bytes=512 << 10)])
async def test_too_large(api: test_utils.TestClient, service: MemoryService, options: HttpOptions) -> None:
    large = SENT + bytes(600 << 10)
    assert (await refused(api, service, data=form(("image[]", large))))[0] == 413
    assert (await refused(api, service, json={"prompt": "a", "image": data_url(large)}))[0] == 413


async def test_a_full_memory(api: test_utils.TestClient, service: MemoryService) -> None:
    service.references = ReferenceMemory(200 << 10)
    large = SENT + bytes(150 << 10)
    with service.references.share() as others:
        others.grow(150 << 10)
        for body in ({"data": form(("image[]", large))}, {"json": {"prompt": "a", "image": data_url(large)}}):
            response = await api.post(VIDEOS, **body)  # type: ignore[arg-type]
            assert (response.status, (await response.json())["error"]["code"]) == (429, "references_full")
            assert int(response.headers["Retry-After"]) > 0
        assert service.references.used == 150 << 10
        assert (await api.post(VIDEOS, json={"prompt": "no image"})).status == 200
    assert await sent(api, service, data=form(("image[]", large))) == (large,)


async def test_a_broken_upload_leaves_nothing(api: test_utils.TestClient, service: MemoryService) -> None:
    reader, writer = await asyncio.open_connection(api.host, api.port)
    head = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
    writer.write(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n")
    writer.write(b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + SENT)
    writer.write(bytes(500_000))
    await until(lambda: service.references.used > 300_000)
    writer.close()
    await until(lambda: service.references.used == 0)
    assert not service.table
    del reader


# ---- sent again


async def test_idempotency_looks_at_the_bytes(api: test_utils.TestClient, service: MemoryService) -> None:
    key = {"Idempotency-Key": "k"}
    first = await (await api.post(VIDEOS, data=form(("input_reference", SENT)), headers=key)).json()
    for body in (
        {"data": form(("input_reference", SENT), filename="other.png")},
        {"json": {"prompt": "a", "input_reference": data_url(SENT)}},
    ):
        again = await (await api.post(VIDEOS, **body, headers=key)).json()  # type: ignore[arg-type]
        assert again["id"] == first["id"]
    response = await api.post(VIDEOS, data=form(("input_reference", JPEG)), headers=key)
    assert (response.status, (await response.json())["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(service.table) == 1 and service.references.used == 0


async def test_a_remix_takes_its_source_s(api: test_utils.TestClient, service: MemoryService) -> None:
    service.served = [model(min_images=1, options=["flow_shift", "strength"])]
    body = {"prompt": "a", "input_reference": data_url(SENT), "flow_shift": 5, "strength": 0.5}
    source = await (await api.post(VIDEOS, json=body)).json()
    service.complete(service.table[source["id"]])
    response = await api.post(f"{VIDEOS}/{source['id']}/remix", json={"prompt": "b"})
    made = await response.json()
    assert response.status == 200, made
    assert service.sent[made["id"]] == (SENT,)
    generation = service.table[made["id"]].generation
    assert (generation.flow_shift, generation.strength) == (5, 0.5)
    assert not generation.HasField("true_cfg_scale")
    response = await api.post(
        f"{VIDEOS}/{source['id']}/remix", json={"prompt": "b", "input_reference": data_url(SENT)}
    )
    assert (response.status, (await response.json())["error"]["param"]) == (400, "input_reference")
