"""A denoiser with --max-batch: fewer loops, and each request gets what it gets alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.onebox import OneBox
from orchestrator.client import VideoClient
from tests.e2e.system import SECONDS, System, attempts, completed, submit, until


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("box")
    with (directory / "log").open("wb") as log:
        box = OneBox(
            "emulated:denoise=0.5",
            data_dir=directory / "data",
            denoiser_arguments=("--max-batch", "4"),
            log=log,
        )
        with box:
            box.wait_ready(SECONDS)
            yield System(box, directory / "log")
    print((directory / "log").read_text())


@pytest.fixture
async def client(system: System) -> AsyncIterator[VideoClient]:
    async with VideoClient(system.box.url) as client:
        yield client


async def test_equal_shapes_share_loops_and_each_gets_its_own(system: System, client: VideoClient) -> None:
    videos = await submit(client, 8)
    await completed(client, videos)
    shared = [a["batch"] for a in await attempts(client, videos) if a["stage"] == "denoise"]
    loops = sum(1 / batch for batch in shared)
    assert len(shared) == 8 and max(shared) <= 4
    assert loops == pytest.approx(round(loops)) and round(loops) < 8
    assert all(a["batch"] == 1 for a in await attempts(client, videos) if a["stage"] != "denoise")
    async with aiohttp.ClientSession() as session, session.get(f"{system.box.url}/metrics") as reply:
        text = await reply.text()
    found = {
        (sample.name, sample.labels["stage"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name == "triptych_batch_size" and "le" not in sample.labels
    }
    assert found["triptych_batch_size_count", "denoise"] == 8
    assert found["triptych_batch_size_sum", "denoise"] == sum(shared)


async def test_a_deleted_request_leaves_those_it_shares_a_loop_with(
    system: System, client: VideoClient
) -> None:
    videos = await submit(client, 5)
    await until(lambda: in_a_loop(client, videos[2]["id"]))
    await client.delete(videos[2]["id"])
    others = videos[:2] + videos[3:]
    await completed(client, others)
    assert all(a["outcome"] == "done" for a in await attempts(client, others))
    await system.at_rest(client)


async def in_a_loop(client: VideoClient, video_id: str) -> bool:
    """A step of its denoising is done."""
    return bool((await client.retrieve(video_id))["step"])
