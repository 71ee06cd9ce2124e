"""The OpenAI Python SDK, unchanged, against the real system."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
import openai
import pytest

from deploy.onebox import OneBox


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_create_retrieve_download(box: OneBox, tmp_path: Path) -> None:
    def use() -> tuple[str, Path]:
        client = openai.OpenAI(base_url=f"{box.url}/v1", api_key="none")
        (model,) = client.models.list().data
        video = client.videos.create(
            prompt="a blue square moving up",
            model=model.id,
            size="64x64",  # type: ignore[arg-type]
            seconds="1",  # type: ignore[arg-type]
            extra_body={"num_inference_steps": 2, "seed": 5, "fps": 8},
        )
        assert video.status in ("queued", "in_progress")
        video = client.videos.poll(video.id, poll_interval_ms=50)
        assert client.videos.retrieve(video.id).progress == 100
        path = tmp_path / "sdk.mp4"
        client.videos.download_content(video.id).write_to_file(path)
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve("video_none")
        with pytest.raises(openai.BadRequestError) as caught:
            client.videos.create(prompt=" ", model=model.id)
        assert caught.value.param == "prompt"
        return video.status, path

    status, path = await asyncio.to_thread(use)
    assert status == "completed"
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
