"""The demo model as a person would judge it: prompts that training never saw, through HTTP, and the films."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deploy.onebox import DEMO_MODEL, OneBox
from deploy.ports import free_port
from deploy.training.judge import agreement, judge
from deploy.training.scenes import HELD_OUT, MEANINGS, Meaning
from deploy.training.words import HELD_OUT_ORDERS, phrase
from orchestrator.client import VideoClient
from tests.e2e.conftest import ROLE_ARGUMENTS, START_SECONDS
from tests.e2e.system import System
from tests.ports import role_urls

PROMPTS_EACH = 1  # of the 30 combinations
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
            port=free_port(),
            data_dir=directory / "data",
            role_arguments=ROLE_ARGUMENTS,
            log=log,
        )
        box.role_urls = role_urls({"encoder": 1, "denoiser": 2, "decoder": 1})
        with box:
            box.wait_ready(START_SECONDS)
            yield System(box, directory / "log")
    print((directory / "log").read_text())


def frames(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Judged:
    """Prompts that are asked for, eight at a time, and what their videos show."""

    def __init__(self, client: VideoClient, folder: Path, **fields: Any) -> None:
        """``fields`` are those of each request."""
        self._asked = [(*prompt, number % SEEDS) for number, prompt in enumerate(prompts())]
        self._client, self._folder, self._fields = client, folder, fields
        self._turns = asyncio.Semaphore(CONCURRENCY)
        self._shown: dict[tuple[str, int], Meaning] = {}

    async def ask(self) -> None:
        await asyncio.gather(*(self._one(prompt, seed) for prompt, _, seed in self._asked))

    def check(self) -> None:
        """Prints how often each property was right, and asserts that it was often enough."""
        shown = [self._shown[prompt, seed] for prompt, _, seed in self._asked]
        shares = agreement(shown, [meaning for _, meaning, _ in self._asked])
        told = {name: f"{share:.1%}" for name, share in shares.items()}
        print(f"{len(shown)} prompts, {SEEDS} seeds, {self._fields}:", told)
        wrong = [(*one, found) for one, found in zip(self._asked, shown, strict=True) if one[1] != found]
        assert all(shares[name] >= least for name, least in LEAST.items()), (shares, wrong)

    async def _one(self, prompt: str, seed: int) -> None:
        async with self._turns:
            video = await self._client.create(prompt=prompt, seed=seed, **self._fields)
            ended = await self._client.wait(video["id"], timeout=VIDEO_SECONDS)
            assert ended["status"] == "completed", ended["error"]
            path = self._folder / f"{video['id']}.mp4"
            await self._client.download(video["id"], path, timeout=VIDEO_SECONDS)
        self._shown[prompt, seed] = judge(frames(path.read_bytes()))


async def test_the_videos_show_what_the_prompts_say(system: System, tmp_path: Path) -> None:
    """While denoisers are killed: none is lost, and what is shown is what was said."""
    async with VideoClient(system.box.url) as client:
        judged = Judged(client, tmp_path)
        asking = asyncio.create_task(judged.ask())
        for _ in range(KILLS):
            victim = await system.busy(client, "denoiser")
            victim.kill()
            await system.ends(victim)
            role, url = victim.name.split()
            system.box.start_role(role, url)
            await system.back(client, url)
        await asking
        await system.at_rest(client)
    judged.check()


async def test_four_steps_look_right(system: System, tmp_path: Path) -> None:
    async with VideoClient(system.box.url) as client:
        judged = Judged(client, tmp_path, num_inference_steps=4)
        await judged.ask()
    judged.check()


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
