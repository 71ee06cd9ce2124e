"""The images endpoints: checked as OpenAI's, and refused by what the models make."""

from __future__ import annotations

import openai
import pytest
from aiohttp import FormData, test_utils

from tests.orchestrator.http.service import MODEL, MemoryService

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
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


def form(*images: str, kind: str = "image/png", **fields: str) -> FormData:
    data = FormData({"prompt": "a cat", **fields}, default_to_multipart=True)
    for name in images:
        data.add_field(name, b"png", filename="a.png", content_type=kind)
    return data


async def test_a_generation(api: test_utils.TestClient) -> None:
    for fields in (WHOLE, {"prompt": "a", "size": "auto", "style": "vivid", "moderation": "low"}):
        response = await api.post(GENERATIONS, json=fields)
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (400, "model_makes_videos", "model")
        assert f"{MODEL.name} makes videos" in error["message"]


@pytest.mark.parametrize("images", [("image",), ("image[]", "image[]"), ("image", "mask")])
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
        (form(image="https://example.org/a.png"), "image"),
        (form("image", kind="application/pdf"), "image"),
        (form(*["image[]"] * 17), "image"),
        (form("prompt"), "prompt"),
    ):
        response = await api.post(EDITS, data=data)
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    response = await api.post(EDITS, json={"prompt": "a", "image": "a.png"})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "image")


async def test_unknown_models_and_none(api: test_utils.TestClient, service: MemoryService) -> None:
    async with openai.AsyncOpenAI(api_key="none", base_url=str(api.make_url("/v1")), max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.images.generate(prompt="a", model="gpt-image-1")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.edit(prompt="a", image=[("a.png", b"png", "image/png")])
        assert refused.value.code == "model_makes_videos"
        service.served = []
        with pytest.raises(openai.InternalServerError) as early:
            await client.images.generate(prompt="a")
        assert early.value.status_code == 503
