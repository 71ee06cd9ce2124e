"""Reference images through real processes: the SDK, the command, a crash, a harmful file."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from deploy.onebox import OneBox
from orchestrator.client import VideoClient
from services.media.reference import MAX_PIXELS, decode_all
from tests.e2e.system import SECONDS, System, until
from tests.load import frames_xxh3
from tests.reference_images import BLUE, RED, encoded, picture, png, png_bomb
from triptych_proto.control_pb2 import Generation

IMAGES = (png(RED), encoded(picture(BLUE), "JPEG"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("images")
    with (directory / "log").open("wb") as log:
        box = OneBox("emulated:images=0-2,encode=0.3", data_dir=directory / "data", log=log)
        with box:
            box.wait_ready(SECONDS)
            yield System(box, directory / "log")
    print((directory / "log").read_text())


def expected(prompt: str, seed: int, *images: bytes) -> str:
    generation = Generation(prompt=prompt, seed=seed, width=64, height=64, num_frames=5, fps=8)
    generation.num_inference_steps, generation.guidance_scale = 4, 1.0
    return frames_xxh3(generation, "images=0-2", decode_all(images, MAX_PIXELS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_openai_sdk(system: System) -> None:
    def use() -> str:
        client = openai.OpenAI(base_url=f"{system.box.url}/v1", api_key="none")
        video = client.videos.create(prompt="p", input_reference=IMAGES[1], extra_body={"seed": 5})
        video = client.videos.poll(video.id, poll_interval_ms=50)
        assert video.status == "completed", video.error
        return str(video.to_dict()["frames_xxh3"])

    assert await asyncio.to_thread(use) == expected("p", 5, IMAGES[1])


async def test_the_command(system: System, tmp_path: Path) -> None:
    words = ["generate", "p", "--server", system.box.url, "--seed", "3", "-o", str(tmp_path / "out.mp4")]
    for number, data in enumerate(IMAGES):
        (tmp_path / f"{number}").write_bytes(data)
        words += ["--image", str(tmp_path / f"{number}")]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "triptych", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    async with VideoClient(system.box.url) as client:
        (video,) = (await client._json("GET", "/videos?limit=1"))["data"]
    assert video["frames_xxh3"] == expected("p", 3, *IMAGES)


async def test_they_outlive_the_orchestrator(system: System) -> None:
    async with VideoClient(system.box.url) as client:
        videos = [await client.create(prompt=f"p{seed}", seed=seed, images=IMAGES) for seed in range(6)]
        victim = system.process("orchestrator")
        victim.send_signal(signal.SIGKILL)
        await system.ends(victim)
        system.box.start_orchestrator()
        for seed, video in enumerate(videos):
            ended = await client.wait(video["id"], timeout=SECONDS)
            assert ended["status"] == "completed", ended["error"]
            assert ended["frames_xxh3"] == expected(f"p{seed}", seed, *IMAGES)
        await system.at_rest(client)


async def test_a_bomb_leaves_the_encoder_as_it_is(system: System) -> None:
    async with VideoClient(system.box.url) as client:
        encoder = system.process("encoder")
        video = await client.create(prompt="p", images=[png_bomb()])
        ended = await client.wait(video["id"], timeout=SECONDS)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_request")
        assert "reference image 1 has 9000x9000 pixels" in ended["error"]["message"]
        assert encoder.poll() is None

        async def ready() -> bool:
            return all(entry["state"] == "ready" for entry in (await client.peers())["data"])

        await until(ready)
        await system.at_rest(client)
