"""The whole system with its roles on a GPU: equal frames, memory that runs out, and a device that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from deploy.onebox import OneBox
from deploy.tiny import wan
from orchestrator.client import VideoClient
from tests.gpu.support import DEVICE, build, guiders, row
from tests.services.model.cases import CASES
from tests.services.model.fused import Fused
from tests.services.model.support import generation

SECONDS = 120.0
LEFT_BYTES = 256 << 20  # on the device, while something else holds the rest
LARGE: dict[str, Any] = {"size": "1280x704", "num_frames": 33, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wan", tmp_path_factory.mktemp("gpu"))


def running(folder: Path, directory: Path) -> Iterator[OneBox]:
    with (directory / "log").open("wb") as log:
        box = OneBox(str(folder), data_dir=directory / "data", role_arguments=("--device", DEVICE), log=log)
        try:
            with box:
                box.wait_ready(SECONDS)
                yield box
        finally:
            print((directory / "log").read_text())


@pytest.fixture(scope="module")
def box(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    yield from running(folder, tmp_path_factory.mktemp("box"))


async def ended(client: VideoClient, **fields: Any) -> dict[str, Any]:
    job = await client.create(**fields)
    return dict(await client.wait(job["id"], timeout=SECONDS))


async def test_frames_equal_the_fused_pipelines(box: OneBox, folder: Path) -> None:
    request, case = generation(), CASES["wan"].base
    kind = row("wan")
    fused = Fused(folder, "WanModularPipeline", device=DEVICE, dtype=torch.bfloat16, float32=kind.float32)
    expected = fused.run(request, guiders(case.guiders)).frames
    async with VideoClient(box.url) as client:
        job = await ended(
            client,
            prompt=request.prompt,
            size=f"{request.width}x{request.height}",
            num_frames=request.num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
            fps=request.fps,
        )
    assert job["status"] == "completed", job["error"]
    assert job["frames_xxh3"] == xxhash.xxh3_64(np.ascontiguousarray(expected).data).hexdigest()


async def test_a_role_whose_memory_runs_out_fails_the_request_and_lives_on(box: OneBox) -> None:
    async with VideoClient(box.url) as client:
        before = await ended(client, prompt="small", size="64x64", num_frames=5, seed=1)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(DEVICE)
        hog = torch.empty(free - LEFT_BYTES, dtype=torch.uint8, device=DEVICE)
        try:
            job = await ended(client, prompt="large", **LARGE)
        finally:
            del hog
            torch.cuda.empty_cache()
        assert job["status"] == "failed", job
        assert "has too little memory for this request" in job["error"]["message"]
        assert box.dead() is None
        after = await ended(client, prompt="small", size="64x64", num_frames=5, seed=1)
        assert after["status"] == "completed" and after["frames_xxh3"] == before["frames_xxh3"]


async def test_a_role_whose_device_is_lost_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer knows more words than its embedding: CUDA notices, and fails all calls from then on."""
    monkeypatch.setattr(wan, "T5_VOCABULARY", wan.T5_VOCABULARY - 50)
    folder = wan.build(tmp_path / "model")
    monkeypatch.undo()
    for box in running(folder, tmp_path):
        async with VideoClient(box.url) as client:
            await client.create(prompt="yellow wind with white water", size="64x64", num_frames=5)
            encoder = next(process for process in box.processes if process.name.startswith("encoder"))
            assert encoder.wait(SECONDS) == 1
            others = [process for process in box.processes if process is not encoder]
            assert all(process.poll() is None for process in others)
