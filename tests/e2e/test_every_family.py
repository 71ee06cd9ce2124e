"""Every family over HTTP, through real processes, with its tiny model: run by ``make families-long``."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from deploy.tiny.table import MODELS
from orchestrator.client import VideoClient
from tests.e2e.conftest import running
from tests.e2e.system import SECONDS
from tests.reference_images import png

pytestmark = pytest.mark.long


@pytest.mark.parametrize("family", MODELS)
async def test_it_is_served(tmp_path: Path, family: str) -> None:
    for box in running(MODELS[family](tmp_path / "model", 0), tmp_path):
        async with VideoClient(box.url) as client:
            (model,) = await client.models()
            images = [png()] if model["min_images"] else []
            fields = {} if model["output"] == "image" else {"num_frames": 9}
            video = await client.create(
                prompt="a red circle", size="64x64", num_inference_steps=2, seed=1, images=images, **fields
            )
            ended = await client.wait(video["id"], timeout=SECONDS)
            assert ended["status"] == "completed", ended["error"]
            path = tmp_path / "file"
            await client.download(video["id"], path, timeout=SECONDS)
        with av.open(str(path)) as file:
            pictures = list(file.decode(video=0))
            assert len(pictures) == ended["num_frames"]
            assert f"{pictures[0].width}x{pictures[0].height}" == ended["size"]
            assert len(file.streams.audio) == family.startswith("ltx")
