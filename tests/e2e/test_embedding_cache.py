"""``triptych up``: a prompt that was encoded before is a hit in the metrics, and gives the same frames."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import aiohttp

from deploy import onebox
from orchestrator.client import VideoClient
from tests.e2e.conftest import ROLE_ARGUMENTS, START_SECONDS
from tests.e2e.system import until

LIMIT = 9_000_000


async def generated(box: onebox.OneBox, **fields: Any) -> str:
    """The checksum of its frames."""
    async with VideoClient(box.url) as client:
        job = await client.create(size="64x64", num_frames=5, num_inference_steps=1, seed=7, **fields)
        job = await client.wait(job["id"], timeout=120.0)
    assert job["status"] == "completed", job
    return str(job["frames_xxh3"])


async def cache(box: onebox.OneBox) -> dict[tuple[str, str], float]:
    """From the metrics, by name and role."""
    async with aiohttp.ClientSession() as session, session.get(f"{box.url}/metrics") as reply:
        text = await reply.text()
    row = r'^triptych_embedding_cache_(\w+)\{role="(\w+)",url="grpc://[^"]+"\} (\S+)$'
    return {(name, role): float(value) for name, role, value in re.findall(row, text, re.MULTILINE)}


async def test_the_second_equal_prompt_is_a_hit(tiny_model: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    onebox.add_arguments(parser)
    words = ["--model", str(tiny_model), "--data-dir", str(tmp_path / "data"), "--port", "0"]
    args = parser.parse_args([*words, *ROLE_ARGUMENTS, "--embedding-cache", str(LIMIT)])
    with onebox.OneBox.from_arguments(args) as box:
        box.wait_ready(START_SECONDS)

        async def counted(hits: int, misses: int) -> bool:  # statistics come every few seconds
            found = await cache(box)
            return (found.get(("hits_total", "encoder")), found.get(("misses_total", "encoder"))) == (
                hits,
                misses,
            )

        first = await generated(box, prompt="a red circle", guidance_scale=5.0)
        await until(lambda: counted(0, 2))  # the prompt, and the empty negative one
        before = await cache(box)
        assert {role for _, role in before} == {"encoder"}
        assert before["limit_bytes", "encoder"] == LIMIT >= before["bytes", "encoder"] > 0
        assert (before["entries", "encoder"], before["evictions_total", "encoder"]) == (2, 0)

        assert await generated(box, prompt="a red circle", guidance_scale=5.0) == first
        assert await generated(box, prompt="a blue square", guidance_scale=5.0) != first
        await until(lambda: counted(3, 3))  # both of the second, the negative prompt of the third
        async with aiohttp.ClientSession() as session, session.get(f"{box.url}/v1/peers") as reply:
            entries = {entry["role"]: entry for entry in (await reply.json())["data"]}
        metrics = {name.removesuffix("_total"): value for (name, _), value in (await cache(box)).items()}
        assert entries["encoder"]["embedding_cache"] == metrics
        assert "embedding_cache" not in entries["denoiser"]
