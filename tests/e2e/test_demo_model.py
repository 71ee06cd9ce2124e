"""The demo model as a person would judge it: prompts that training never saw, through HTTP, and the films."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from deploy.onebox import DEMO_MODEL, OneBox
from deploy.training.judge import agreement, judge
from deploy.training.scenes import HELD_OUT, MEANINGS, Meaning
from deploy.training.words import HELD_OUT_ORDERS, phrase
from orchestrator.client import VideoClient
from tests.e2e.conftest import ROLE_ARGUMENTS, START_SECONDS
from tests.e2e.system import System
from tests.ports import lasting_port, lasting_urls

PROMPTS_EACH = 2  # of the 30 combinations
SEEDS = 4  # in turns
CONCURRENCY = 8
KILLS = 2
VIDEO_SECONDS = 300.0
# What a person would still call right.
LEAST = {"colour": 0.97, "motion": 0.95, "shape": 0.85, "ground": 0.95}


def prompts() -> list[tuple[str, Meaning]]:
    """Combinations and word orders that training never shows, with what they mean."""
    chance = random.Random(7)
    return [
        (phrase(MEANINGS[index], chance.choice(HELD_OUT_ORDERS), chance), MEANINGS[index])
        for index in HELD_OUT
        for _ in range(PROMPTS_EACH)
    ]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("demo")
    with (directory / "log").open("wb") as log:
        box = OneBox(
            str(DEMO_MODEL),
            port=lasting_port(),
            data_dir=directory / "data",
            role_arguments=ROLE_ARGUMENTS,
            log=log,
        )
        box.role_urls = lasting_urls({"encoder": 1, "denoiser": 2, "decoder": 1})
        with box:
            box.wait_ready(START_SECONDS)
            yield System(box, directory / "log")
    print((directory / "log").read_text())


def frames(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


async def test_the_videos_show_what_the_prompts_say(system: System, tmp_path: Path) -> None:
    """Eight at a time, while denoisers are killed: none is lost, and what is shown is what was said."""
    asked = [(*prompt, number % SEEDS) for number, prompt in enumerate(prompts())]
    turns = asyncio.Semaphore(CONCURRENCY)
    shown: dict[tuple[str, int], Meaning] = {}

    async def one(client: VideoClient, prompt: str, seed: int) -> None:
        async with turns:
            video = await client.create(prompt=prompt, seed=seed)
            ended = await client.wait(video["id"], timeout=VIDEO_SECONDS)
            assert ended["status"] == "completed", ended["error"]
            path = tmp_path / f"{video['id']}.mp4"
            await client.download(video["id"], path, timeout=VIDEO_SECONDS)
        shown[prompt, seed] = judge(frames(path.read_bytes()))

    async with VideoClient(system.box.url) as client:
        asking = [asyncio.create_task(one(client, prompt, seed)) for prompt, _, seed in asked]
        for _ in range(KILLS):
            victim = await system.busy(client, "denoiser")
            victim.kill()
            await system.ends(victim)
            role, url = victim.name.split()
            system.box.start_role(role, url)
            await system.back(client, url)
        await asyncio.gather(*asking)
        await system.at_rest(client)
    shares = agreement(
        [shown[prompt, seed] for prompt, _, seed in asked], [meaning for _, meaning, _ in asked]
    )
    print(f"{len(asked)} prompts, {SEEDS} seeds:", {name: f"{share:.1%}" for name, share in shares.items()})
    wrong = [(p, s, shown[p, s]) for p, meaning, s in asked if shown[p, s] != meaning]
    assert all(shares[name] >= least for name, least in LEAST.items()), (shares, wrong)


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a red circle moving right", Meaning("red", "circle", "right", "dark")),
        ("yellow triangle going up on light ground", Meaning("yellow", "triangle", "up", "light")),
        ("a white square at rest", Meaning("white", "square", "still", "dark")),
        ("a green triangle drifting to the left", Meaning("green", "triangle", "left", "dark")),
    ],
)
async def test_six_steps_already_look_right(
    system: System, tmp_path: Path, prompt: str, meaning: Meaning
) -> None:
    async with VideoClient(system.box.url) as client:
        video = await client.create(prompt=prompt, seed=1, num_inference_steps=6)
        await client.wait(video["id"], timeout=VIDEO_SECONDS)
        path = tmp_path / "video.mp4"
        await client.download(video["id"], path, timeout=VIDEO_SECONDS)
    assert judge(frames(path.read_bytes())) == meaning


async def test_the_seed_changes_only_what_the_prompt_leaves_open(system: System, tmp_path: Path) -> None:
    """And the size is what the model's folder says."""
    seen, first = set(), []
    async with VideoClient(system.box.url) as client:
        for seed in range(4):
            video = await client.create(prompt="A blue square moving down.", seed=seed)
            ended = await client.wait(video["id"], timeout=VIDEO_SECONDS)
            assert (ended["size"], ended["num_frames"]) == ("64x64", 17)
            path = tmp_path / f"{seed}.mp4"
            await client.download(video["id"], path, timeout=VIDEO_SECONDS)
            pixels = frames(path.read_bytes())
            seen.add(judge(pixels))
            first.append(pixels[0])
    assert seen == {Meaning("blue", "square", "down", "dark")}
    for number, one in enumerate(first):
        assert all(np.abs(one.astype(int) - other.astype(int)).mean() > 1 for other in first[:number])
