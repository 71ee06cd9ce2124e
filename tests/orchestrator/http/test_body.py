"""Bodies as clients send them, over a real socket: recorded bytes, the OpenAI SDK, and broken ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp import FormData, test_utils
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.http.body import nest
from orchestrator.http.errors import ApiError
from orchestrator.http.options import HttpOptions
from tests.orchestrator.http.service import MODEL, MemoryService
from tests.reference_images import png

PNG = png()
BOUNDARY = "e075331e5d5eaf82c77d62accdb69725"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def multipart(*parts: tuple[str, str], suffix: str = "") -> bytes:
    """Text parts with a Content-Disposition only, as OpenAI's SDKs make them: see tests/clients/wire."""
    lines = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n{value}\r\n'
        for name, value in parts
    ]
    return "".join([*lines, f"--{BOUNDARY}--\r\n"]).encode()


OPENAI_SDK = multipart(
    ("prompt", "a cat, “grün”"),
    ("model", MODEL.name),
    ("seconds", "2"),
    ("size", "64x32"),
    ("seed", "18446744073709551615"),
    ("negative_prompt", "blurry, low"),
    ("extra_params[fps]", "8"),
)
AIPERF = multipart(
    ("prompt", "a cat, “grün”"),
    ("model", MODEL.name),
    ("size", "64x32"),
    ("seconds", "2"),
    ("fps", "8"),
    ("seed", "18446744073709551615"),
    ("negative_prompt", "blurry, low"),
)
CURL_JSON = json.dumps(
    {
        "prompt": "a cat, “grün”",
        "seconds": 2,
        "size": "64x32",
        "fps": 8,
        "seed": 2**64 - 1,
        "negative_prompt": "blurry, low",
    }
).encode()
CURL_FORM = (
    b"prompt=a+cat%2C+%E2%80%9Cgr%C3%BCn%E2%80%9D&seconds=2&size=64x32&extra_body[fps]=8"
    b"&seed=18446744073709551615&negative_prompt=blurry, low"
)


@pytest.mark.parametrize(
    ("headers", "body"),
    [(MULTIPART, OPENAI_SDK), (MULTIPART, AIPERF), (JSON, CURL_JSON), (URLENCODED, CURL_FORM)],
    ids=["openai", "aiperf", "json", "urlencoded"],
)
async def test_all_encodings_make_the_same_generation(
    api: test_utils.TestClient, service: MemoryService, headers: dict[str, str], body: bytes
) -> None:
    response = await api.post("/v1/videos", data=body, headers=headers)
    assert response.status == 200, await response.text()
    video = await response.json()
    made = service.table[video["id"]].generation
    assert (made.prompt, made.negative_prompt, made.seed) == ("a cat, “grün”", "blurry, low", 2**64 - 1)
    assert (made.width, made.height, made.num_frames, made.fps) == (64, 32, 17, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # every videos method has one
async def test_the_openai_client(api: test_utils.TestClient, service: MemoryService) -> None:
    base_url = str(api.make_url("/v1"))
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client:
        video = await client.videos.create(
            prompt="a cat",
            model=MODEL.name,
            seconds="4",
            size="64x32",
            extra_body={"extra_params": {"seed": 3}},
        )
        made = service.table[video.id].generation
        assert (made.prompt, made.num_frames, made.seed, video.status) == ("a cat", 65, 3, "queued")
        service.complete(service.table[video.id], b"data" * 1000)
        video = await client.videos.retrieve(video.id)
        assert (video.status, video.size, video.progress, video.error) == ("completed", "64x32", 100, None)
        content = await client.videos.download_content(video.id)
        assert content.content == b"data" * 1000
        page = await client.videos.list(limit=1)
        assert [item.id for item in page.data] == [video.id]
        assert (await client.videos.delete(video.id)).deleted
        with pytest.raises(openai.NotFoundError) as missing:
            await client.videos.retrieve(video.id)
        assert missing.value.code == "video_not_found"
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError) as refused:
            await client.videos.create(prompt="a", input_reference=PNG)
        assert refused.value.param == "input_reference"
    assert not service.table


@pytest.mark.parametrize(
    ("headers", "body", "status", "param"),
    [
        (JSON, b"{", 400, None),
        (JSON, b"", 400, None),
        (JSON, b"[1]", 400, None),
        (JSON, b'{"prompt": NaN}', 400, None),
        (JSON, b'{"seed": 1' + b"0" * 5000 + b"}", 400, None),
        (JSON, b'{"prompt": "a", "prompt": "b"}', 400, None),
        (JSON, b"\xff\xfe", 400, None),
        (JSON, b'{"a":' * 12000, 400, None),
        (JSON, json.dumps({str(i): 1 for i in range(65)}).encode(), 400, None),
        (JSON, b'{"prompt": "a", "guidance_scale": 1e999}', 400, "guidance_scale"),
        (URLENCODED, b"prompt=%ff", 400, None),
        (URLENCODED, b"&".join(b"a%d=1" % i for i in range(65)), 400, None),
        (URLENCODED, b"prompt=a&prompt=b", 400, "prompt"),
        (URLENCODED, b"prompt=a&extra_params={'seed': 1}", 400, "extra_params"),
        (URLENCODED, b'{"prompt": "a"}', 415, None),
        ({"Content-Type": "text/plain"}, b"prompt", 415, None),
        (MULTIPART, b"no boundary at all", 400, None),
        (MULTIPART, OPENAI_SDK[:200], 400, None),
        (MULTIPART, OPENAI_SDK.replace(b"form-data; name", b"form-data; nome"), 400, None),
        (MULTIPART, multipart(*[(f"a{i}", "") for i in range(65)]), 400, None),
        (
            MULTIPART,
            multipart(("prompt", "x"), suffix="\r\nContent-Type: text/x; charset=klingon"),
            400,
            None,
        ),
        (MULTIPART, multipart(("prompt", "x"), suffix="\r\nContent-Transfer-Encoding: rot13"), 400, None),
        (MULTIPART, multipart(("reference", "x"), suffix='; filename="a.png"'), 400, "reference"),
        (MULTIPART, multipart(("image[]", "x"), ("image[]", "y")), 400, "image"),
        ({"Content-Type": "multipart/form-data"}, OPENAI_SDK, 400, None),
        (JSON, b'{"prompt": "' + b"a" * (70 << 10) + b'"}', 413, None),
        (MULTIPART, multipart(("prompt", "a" * (70 << 10))), 413, None),
        (MULTIPART, multipart(("image", "a" * (70 << 10)), suffix='; filename="a.png"'), 413, None),
    ],
)
async def test_bodies_that_are_refused(
    api: test_utils.TestClient,
    service: MemoryService,
    headers: dict[str, str],
    body: bytes,
    status: int,
    param: str | None,
) -> None:
    response = await api.post("/v1/videos", data=body, headers=headers)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (status, param), error
    assert error["message"] and error["code"]
    assert not service.table


def with_file(name: str, data: bytes = PNG, **fields: str) -> FormData:
    form = FormData({"prompt": "a", **fields}, default_to_multipart=True)
    form.add_field(name, data, filename="a.png", content_type="image/png")
    return form


@pytest.mark.parametrize(
    ("name", "param", "code"),
    [
        ("input_reference", "input_reference", "unsupported_field"),
        ("image[]", "image", "unsupported_field"),
        ("size", "size", "invalid_value"),
        ("extra_params", "extra_params", "invalid_value"),
        ("user", "user", "invalid_value"),
        ("photo", "photo", "unknown_field"),
    ],
)
async def test_files_are_refused_by_name(
    api: test_utils.TestClient, service: MemoryService, name: str, param: str, code: str
) -> None:
    response = await api.post("/v1/videos", data=with_file(name))
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["code"]) == (400, param, code)
    assert not service.table


async def test_an_empty_file_input_of_a_browser_is_none(api: test_utils.TestClient) -> None:
    part = multipart(
        ("input_reference", ""), suffix='; filename=""\r\nContent-Type: application/octet-stream'
    )
    body = part.replace(f"--{BOUNDARY}--\r\n".encode(), b"") + multipart(("prompt", "a"))
    assert (await api.post("/v1/videos", data=body, headers=MULTIPART)).status == 200


@pytest.mark.parametrize("options", [HttpOptions(ignore_unknown_fields=True)])
async def test_unknown_fields_that_are_let_pass_are_named(
    api: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    response = await api.post("/v1/videos", data=with_file("photo"))
    assert (response.status, response.headers["X-Ignored-Fields"]) == (200, "photo")
    body = {"prompt": "a", "ü, \r\nSet-Cookie: a": 1, "\ud800": 2}
    response = await api.post("/v1/videos", json=body)
    assert response.status == 200
    assert response.headers["X-Ignored-Fields"] == "%C3%BC%2C%20%0D%0ASet-Cookie%3A%20a, %3F"
    assert "Set-Cookie" not in response.headers
    many = {"prompt": "a", **{f"x{number}": 1 for number in range(60)}}
    names = (await api.post("/v1/videos", json=many)).headers["X-Ignored-Fields"].split(", ")
    assert names == [f"x{number}" for number in range(16)]
    response = await api.post("/v1/videos", data=with_file("input_reference"))
    assert (response.status, (await response.json())["error"]["param"]) == (400, "input_reference")
    assert "X-Ignored-Fields" not in (await api.post("/v1/videos", json={"prompt": "a"})).headers


@pytest.mark.parametrize("options", [HttpOptions(max_body_bytes=8 << 20)])
async def test_a_large_file_takes_no_memory_and_no_disk(
    api: test_utils.TestClient, options: HttpOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a temporary file is made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("aiohttp.web_request.SpooledTemporaryFile", refuse)

    async def sent(size: int) -> AsyncIterator[bytes]:
        yield multipart(("prompt", "a")).replace(f"--{BOUNDARY}--\r\n".encode(), b"")
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="a"\r\n\r\n'.encode()
        for _ in range(size >> 16):
            yield bytes(1 << 16)
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    tracemalloc.start()
    response = await api.post("/v1/videos", data=sent(6 << 20), headers=MULTIPART)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (response.status, (await response.json())["error"]["param"]) == (400, "video")
    assert peak < 3 << 20
    response = await api.post("/v1/videos", data=sent(12 << 20), headers=MULTIPART)
    assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")


async def test_an_empty_form_misses_its_prompt(api: test_utils.TestClient) -> None:
    response = await api.post("/v1/videos", data=FormData({"model": MODEL.name}))
    assert (response.status, (await response.json())["error"]["param"]) == (400, "prompt")


async def test_a_body_that_is_not_compressed_as_it_says(api: test_utils.TestClient) -> None:
    response = await api.post("/v1/videos", data=b"hello", headers={**JSON, "Content-Encoding": "gzip"})
    assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_body")


async def test_a_compressed_body_counts_by_its_full_size(api: test_utils.TestClient) -> None:
    body = gzip.compress(b'{"prompt": "' + b"a" * (1 << 20) + b'"}')
    assert len(body) < 4096
    response = await api.post("/v1/videos", data=body, headers={**JSON, "Content-Encoding": "gzip"})
    assert response.status == 413


@pytest.mark.parametrize("options", [HttpOptions(body_timeout=0.2)])
async def test_a_body_that_does_not_arrive(api: test_utils.TestClient, options: HttpOptions) -> None:
    reader, writer = await asyncio.open_connection(api.host, api.port)
    writer.write(HEAD + b"Content-Length: 9\r\n\r\n{")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")


async def test_a_broken_chunk(api: test_utils.TestClient, service: MemoryService) -> None:
    reader, writer = await asyncio.open_connection(api.host, api.port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert not service.table


def test_nested_names() -> None:
    pairs = [("a[b][c]", "1"), ("a[b][d][]", "2"), ("a[b][d][]", "3"), ("e[]", "4"), ("f", "{}")]
    assert nest(pairs) == {"a": {"b": {"c": "1", "d": ["2", "3"]}}, "e": ["4"], "f": "{}"}


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "a[b]"],
        ["a[b]", "a"],
        ["a[]", "a[b]"],
        ["a[b]", "a[]"],
        ["a[", "b"],
        [""],
        ["a[][b]"],
    ],
)
def test_names_that_contradict_or_are_malformed(names: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        nest([(name, "1") for name in names])
    assert caught.value.status == 400


@given(st.lists(st.tuples(st.text("ab[]", max_size=12), st.text(max_size=3)), max_size=5))
def test_any_names_nest_or_are_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        fields: dict[str, Any] = nest(pairs)
    except ApiError:
        return
    assert len(json.dumps(fields)) >= sum(len(value) for _, value in pairs)
