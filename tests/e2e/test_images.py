"""Images through real processes: OpenAI's SDK, formats, edits; a small FLUX beside its fused pipeline."""

from __future__ import annotations

import asyncio
import base64
import io
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import xxhash
from PIL import Image

from deploy.onebox import OneBox
from deploy.tiny import flux
from orchestrator.client import VideoClient
from services.media.reference import MAX_PIXELS, decode_all
from tests.e2e.conftest import running
from tests.e2e.reference import checksum
from tests.e2e.system import SECONDS
from tests.load import frames_xxh3
from tests.reference_images import BLUE, encoded, picture
from tests.services.model.fused import Fused
from triptych_proto.control_pb2 import Generation

SENT = encoded(picture(BLUE, (48, 32)))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    directory = tmp_path_factory.mktemp("emulated-images")
    with (directory / "log").open("wb") as log:
        box = OneBox("emulated:output=image,images=0-1", data_dir=directory / "data", log=log)
        with box:
            box.wait_ready(SECONDS)
            yield box
    print((directory / "log").read_text())


def sdk(box: OneBox) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{box.url}/v1", api_key="none", max_retries=0)


def expected(prompt: str, seed: int, *images: bytes) -> str:
    generation = Generation(prompt=prompt, seed=seed, width=64, height=32, num_frames=1)
    generation.num_inference_steps, generation.guidance_scale = 4, 1.0
    return frames_xxh3(generation, "output=image,images=0-1", decode_all(images, MAX_PIXELS))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def of_pixels(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(opened(data)).tobytes())


def fetched(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=SECONDS) as reply:
        return reply.headers["Content-Type"], reply.read()


async def test_two_in_base64(emulated: OneBox) -> None:
    def use() -> Any:
        images = sdk(emulated).images
        return images.generate(
            prompt="p", n=2, size="64x32", response_format="b64_json", extra_body={"seed": 5}
        )

    reply = await asyncio.to_thread(use)
    assert [of_pixels(base64.b64decode(image.b64_json)) for image in reply.data] == [
        expected("p", 5),
        expected("p", 6),
    ]
    assert (reply.output_format, reply.size, reply.background) == ("png", "64x32", "opaque")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_by_url_in_every_format(emulated: OneBox, kind: Any) -> None:
    def use() -> list[tuple[str, bytes]]:
        images = sdk(emulated).images
        reply = images.generate(
            prompt="p", n=2, size="64x32", response_format="url", output_format=kind, extra_body={"seed": 5}
        )
        assert reply.output_format == kind and reply.data is not None
        return [fetched(str(image.url)) for image in reply.data]

    for seed, (content_type, data) in enumerate(await asyncio.to_thread(use), 5):
        assert content_type == f"image/{kind}"
        image = opened(data)
        assert (image.format, image.size) == (kind.upper(), (64, 32))
        assert kind != "png" or of_pixels(data) == expected("p", seed)


async def test_an_edit(emulated: OneBox) -> None:
    def use() -> bytes:
        reply = sdk(emulated).images.edit(
            image=("a.png", SENT, "image/png"), prompt="p", size="64x32", extra_body={"seed": 5}
        )
        assert reply.data is not None
        return base64.b64decode(reply.data[0].b64_json or "")

    assert of_pixels(await asyncio.to_thread(use)) == expected("p", 5, SENT) != expected("p", 5)


async def test_as_a_video(emulated: OneBox) -> None:
    """The job, its file and its thumbnail; the model makes no video."""
    async with VideoClient(emulated.url) as client:
        for images in ((), (SENT,)):
            video = await client.create(prompt="p", seed=5, size="64x32", images=images)
            video = await client.wait(video["id"], timeout=SECONDS)
            assert (video["status"], video["frames_xxh3"]) == ("completed", expected("p", 5, *images))
            assert (video["num_frames"], video["seconds"], video["size"]) == (1, "0", "64x32")
            content_type, data = await asyncio.to_thread(fetched, video["url"])
            assert (content_type, of_pixels(data)) == ("image/png", video["frames_xxh3"])
            content_type, data = await asyncio.to_thread(fetched, f"{video['url']}?variant=thumbnail")
            assert (content_type, opened(data).format, opened(data).size) == (
                "image/webp",
                "WEBP",
                (64, 32),
            )


# ---- a real model

FLUX: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0, "seed": 7}


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux.build(tmp_path_factory.mktemp("flux") / "tiny-flux", 0)


@pytest.fixture(scope="module")
def flux_box(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    yield from running(flux_folder, tmp_path_factory.mktemp("flux-box"))


@lru_cache(maxsize=1)
def fused(folder: Path) -> Fused:
    return Fused(folder, "FluxModularPipeline")


def pipelines(folder: Path, **inputs: Any) -> str:
    """``frames_xxh3`` of the fused pipeline, with one thread as the roles have."""
    request = Generation(prompt="p", width=64, height=48, num_frames=1, num_inference_steps=5, seed=7)
    images = [opened(image) for image in inputs.pop("images", ())]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return checksum(fused(folder).run(request, {}, images, guidance_scale=3.0, **inputs).frames)
    finally:
        torch.set_num_threads(threads)


async def test_flux_from_text_and_from_an_image(flux_box: OneBox, flux_folder: Path) -> None:
    def use() -> tuple[bytes, bytes]:
        images = sdk(flux_box).images
        made = images.generate(prompt="p", size="64x48", extra_body=FLUX)  # type: ignore[call-overload]
        edited = images.edit(
            image=("a.png", SENT, "image/png"),
            prompt="p",
            size="64x48",  # type: ignore[call-overload]
            extra_body={**FLUX, "strength": 0.9},
        )
        return tuple(base64.b64decode(reply.data[0].b64_json) for reply in (made, edited))  # type: ignore[return-value]

    pictures = [of_pixels(data) for data in await asyncio.to_thread(use)]
    async with VideoClient(flux_box.url) as client:
        jobs = (await client._json("GET", "/videos?order=asc"))["data"]
        assert [job["frames_xxh3"] for job in jobs] == pictures
        (model,) = (await client._json("GET", "/models"))["data"]
        assert (model["output"], model["formats"][0], model["max_images"]) == ("image", "png", 1)
    assert pictures == [
        await asyncio.to_thread(pipelines, flux_folder),
        await asyncio.to_thread(pipelines, flux_folder, images=[SENT], strength=0.9),
    ]
