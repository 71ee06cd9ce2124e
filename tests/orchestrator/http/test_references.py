"""Reference images at the door: every way to send them, and what is refused before anything is stored."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp import FormData, test_utils, web

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.reference_memory import ReferenceMemory
from orchestrator.targets import Targets
from tests.cluster import until
from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import BLUE, GREEN, RED, animated, chunk, encoded, picture, png, png_of
from triptych_proto.control_pb2 import Model

SENT = png(RED)
JPEG = encoded(picture(GREEN), "JPEG")
WEBP = encoded(picture(BLUE), "WEBP")
VIDEOS = "/v1/videos"


def model(**facts: Any) -> Model:
    changed = Model()
    changed.CopyFrom(MODEL)
    changed.MergeFrom(Model(**{"max_images": 2, **facts}))
    return changed


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(max_body_bytes=1 << 20)


@pytest.fixture(autouse=True)
def takes_images(service: MemoryService) -> None:
    service.served = [model()]


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def form(*files: tuple[str, bytes], filename: str = "a.png", **fields: str) -> FormData:
    data = FormData({"prompt": "a", **fields}, default_to_multipart=True)
    for name, content in files:
        data.add_field(name, content, filename=filename, content_type="application/octet-stream")
    return data


async def sent(api: test_utils.TestClient, service: MemoryService, **body: Any) -> tuple[bytes, ...]:
    """What was stored with the job; nothing of it is left with the request."""
    response = await api.post(VIDEOS, **body)
    assert response.status == 200, await response.text()
    assert service.references.used == 0
    return service.sent[(await response.json())["id"]]


async def refused(
    api: test_utils.TestClient, service: MemoryService, **body: Any
) -> tuple[int, str | None, str, str]:
    response = await api.post(VIDEOS, **body)
    error = (await response.json())["error"]
    assert not service.table and service.references.used == 0
    return response.status, error["param"], error["code"], error["message"]


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


# ---- URLs


class Host:
    """A server of images, good ones and others; notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Any = SENT
        app = web.Application()
        app.router.add_get("/{name:.*}", self._get)
        self.server = test_utils.TestServer(app, host="127.0.0.1")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, dict(request.headers)))
        if callable(self.answer):
            response: web.StreamResponse = await self.answer(request)
            return response
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, content_type="image/png")
        return web.Response(**self.answer)

    def url(self, name: str = "a.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server.port}/{name}"


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.server.start_server()
    yield host
    await host.server.close()


@pytest.fixture
async def fetching(service: MemoryService, host: Host) -> AsyncIterator[test_utils.TestClient]:
    """A server that may fetch from the host."""
    targets = Targets([f"127.0.0.1:{host.server.port}"], "--reference-allow")
    options = HttpOptions(max_body_bytes=64 << 10, reference_targets=targets, reference_timeout=1.0)
    async with test_utils.TestClient(test_utils.TestServer(create_app(service, options))) as client:
        yield client


@pytest.mark.parametrize("name", ["input_reference", "reference_url", "image"])
async def test_a_url(fetching: test_utils.TestClient, service: MemoryService, host: Host, name: str) -> None:
    assert await sent(fetching, service, json={"prompt": "a", name: host.url("b.png?sig=x%2F")}) == (SENT,)
    ((path, headers),) = host.asked
    assert path == "/b.png?sig=x%2F"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & headers.keys()
    body = {"prompt": "a", name: {"image_url": host.url()}}
    assert await sent(fetching, service, json=body) == (SENT,)
    assert await sent(fetching, service, data={"prompt": "a", name: host.url()}) == (SENT,)


async def test_urls_and_files_together(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    host.answer = {"body": JPEG, "content_type": "application/octet-stream"}
    body = {"prompt": "a", "input_reference": [data_url(SENT), host.url()]}
    assert await sent(fetching, service, json=body) == (SENT, JPEG)


async def test_a_url_that_was_taken_is_not_fetched_again(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    for _ in range(2):
        body = {"prompt": "a", "input_reference": host.url()}
        await sent(fetching, service, json=body, headers={"Idempotency-Key": "k"})
    assert len(host.asked) == 1


async def test_urls_need_an_allow_list(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"prompt": "a", "input_reference": "https://images.example/a.png"}
    status, param, code, message = await refused(api, service, json=body)
    assert (status, param, code) == (400, "input_reference", "unsupported_field")
    assert "--reference-allow" in message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",  # another port
        "http://localhost:{port}/a.png",
        "http://127.1:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://0x7f000001:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://user:secret@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@evil.example/",
        "http://evil.example#@127.0.0.1:{port}/",
        "http://evil.example\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/ a",
        "http://127.0.0.1:{port}/\r\nX: y",
        "http://127.0.0.1:99999/",
        "http://",
        "https://127.0.0.1:{port}/" + "a" * 3000,
    ],
)
async def test_urls_that_are_not_allowed(
    fetching: test_utils.TestClient, service: MemoryService, host: Host, url: str
) -> None:
    body = {"prompt": "a", "input_reference": url.replace("{port}", str(host.server.port))}
    status, param, _, message = await refused(fetching, service, json=body)
    assert (status, param) == (400, "input_reference")
    assert len(message) < 400 and "secret" not in message
    assert host.asked == []


async def test_a_name_that_leads_inside(service: MemoryService, host: Host) -> None:
    targets = Targets([f"localhost:{host.server.port}"], "--reference-allow")
    app = create_app(service, HttpOptions(reference_targets=targets))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        body = {"prompt": "a", "input_reference": host.url(host="localhost")}
        status, _, code, message = await refused(client, service, json=body)
    assert (status, code) == (400, "reference_unavailable")
    assert "localhost has no public address" in message
    assert host.asked == []


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    await response.write(SENT)
    while True:
        await response.write(bytes(16 << 10))


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    for byte in SENT * 10:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return response


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "50000"})
    await response.prepare(request)
    await response.write(SENT)
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 404}, "answered 404"),
        ({"status": 500}, "answered 500"),
        ({"status": 204}, "answered 204"),
        ({"status": 302, "headers": {"Location": "/b.png"}}, "redirects are not followed"),
        ({"status": 307, "headers": {"Location": "http://169.254.169.254/"}}, "redirects are not followed"),
        ({"text": "<html>", "content_type": "text/html"}, "its type is 'text/html'"),
        ({"body": b"<svg/>", "content_type": "image/svg+xml"}, "its type is 'image/svg+xml'"),
        ({"body": b"<svg/>" * 100, "content_type": "image/png"}, "not a PNG, JPEG or WebP"),
        ({"body": b"", "content_type": "image/png"}, "not a PNG, JPEG or WebP"),
        ({"body": SENT + bytes(64 << 10), "content_type": "image/png"}, "more than 65536 bytes"),
        (
            {
                "body": b"\x1f\x8b" + SENT,
                "headers": {"Content-Encoding": "gzip"},
                "content_type": "image/png",
            },
            "not a PNG",
        ),
        (endless, "more than 65536 bytes"),
        (silent, "not there within 1 s"),
        (dripping, "not there within 1 s"),
        (cut_off, "ClientPayloadError"),
    ],
)
async def test_hosts_that_do_not_serve(
    fetching: test_utils.TestClient, service: MemoryService, host: Host, answer: Any, reason: str
) -> None:
    host.answer = answer
    body = {"prompt": "a", "input_reference": host.url()}
    status, param, code, message = await refused(fetching, service, json=body)
    assert (status, param, code) == (400, "input_reference", "reference_unavailable")
    assert reason in message
    assert len(host.asked) == 1


async def test_nobody_there(service: MemoryService, host: Host) -> None:
    port = host.server.port
    await host.server.close()
    targets = Targets([f"127.0.0.1:{port}"], "--reference-allow")
    app = create_app(service, HttpOptions(reference_targets=targets))
    async with test_utils.TestClient(test_utils.TestServer(app)) as client:
        body = {"prompt": "a", "input_reference": f"http://127.0.0.1:{port}/"}
        status, _, code, _ = await refused(client, service, json=body)
    assert (status, code) == (400, "reference_unavailable")


async def test_all_images_together_have_a_limit(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    host.answer = SENT + bytes(40 << 10)
    body = {"prompt": "a", "input_reference": [host.url(), host.url()]}
    status, _, code, message = await refused(fetching, service, json=body)
    assert (status, code) == (400, "reference_unavailable")
    assert "more than" in message


async def test_what_is_fetched_takes_up_memory(
    fetching: test_utils.TestClient, service: MemoryService, host: Host
) -> None:
    service.references = ReferenceMemory(10 << 10)
    host.answer = SENT + bytes(40 << 10)
    status, _, code, _ = await refused(fetching, service, json={"prompt": "a", "input_reference": host.url()})
    assert (status, code) == (429, "references_full")


def test_bad_entries() -> None:
    with pytest.raises(ValueError, match="--reference-allow 'https://x'"):
        Targets(["https://x"], "--reference-allow")
