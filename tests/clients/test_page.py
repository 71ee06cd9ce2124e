"""docs/clients.md: each block of the page, run as it stands there. Only the address is another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.clients.environments import AIPERF, NODE_MODULES, OPENAI_2, ROOT, need, need_command
from tests.clients.servers import Servers
from tests.clients.tokenizer import seed_cache

PAGE = ROOT / "docs" / "clients.md"
ADDRESS = re.compile(r"(127\.0\.0\.1|localhost):30010\b")


def blocks(section: str, system: Servers) -> list[tuple[str, str]]:
    """Language and text of each block under a heading."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    port = system.url.rpartition(":")[2]
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found and all(":30010" in block for _, block in found[:1])
    return [(language, ADDRESS.sub(rf"\1:{port}", block)) for language, block in found]


def run(words: list[str | Path], directory: Path, **environment: str) -> str:
    """What it prints. The environment is this one's and what is given."""
    result = subprocess.run(
        words,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_every_section_with_blocks_is_run_here() -> None:
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert [name for name, text in sections if "```" in text] == ["curl", "Python", "Node", "AIPerf"]


def test_curl(system: Servers, tmp_path: Path) -> None:
    need_command("curl")
    found = blocks("curl", system)
    assert [language for language, _ in found] == ["bash", "bash"]
    for _, script in found:
        printed = run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
        path = tmp_path / "circle.mp4"
        assert frames(path) == 41
        path.unlink()
    assert b"WEBP" in (tmp_path / "circle.webp").read_bytes()[:16]
    assert "event: completed" in printed and '"status": "completed"' in printed
    assert printed.endswith('"object": "video.deleted", "deleted": true}')


@pytest.mark.parametrize("python", [Path(sys.executable), OPENAI_2], ids=["3", "2"])
def test_python(system: Servers, tmp_path: Path, python: Path) -> None:
    ((language, script),) = blocks("Python", system)
    assert language == "python"
    lines = run([need(python), "-c", script], tmp_path).splitlines()
    assert "completed 100 a blue square moving right" in lines[0]
    assert "completed 100 a red circle moving right" in lines[1]
    assert lines[-1].startswith("size invalid_value ")
    assert frames(tmp_path / "circle.mp4") == 41
    assert b"WEBP" in (tmp_path / "circle.webp").read_bytes()[:16]


def test_node(system: Servers, tmp_path: Path) -> None:
    ((language, script),) = blocks("Node", system)
    assert language == "js"
    (tmp_path / "node_modules").symlink_to(need(NODE_MODULES))
    (tmp_path / "circle.mjs").write_text(script)
    run([need_command("node"), "circle.mjs"], tmp_path)
    assert frames(tmp_path / "circle.mp4") == 41


def test_aiperf(system: Servers, tmp_path: Path) -> None:
    """Its tokenizer is a stand-in under the name that the page gives: nothing is downloaded."""
    (first, command), (second, script) = blocks("AIPerf", system)
    assert (first, second) == ("bash", "python")
    cache = seed_cache(tmp_path / "cache", "gpt2")
    path = f"{need(AIPERF).parent}:{os.environ['PATH']}"
    run(["bash", "-euo", "pipefail", "-c", command], tmp_path, PATH=path, **cache)
    (report,) = (
        json.loads(path.read_text()) for path in tmp_path.glob("artifacts/*/profile_export_aiperf.json")
    )
    assert report["error_summary"] == [] and "error_request_count" not in report
    assert report["request_count"]["avg"] == 20
    assert report["video_inference_time"]["count"] == report["video_peak_memory"]["count"] == 20
    run([sys.executable, "-c", script], tmp_path)
    videos = list(tmp_path.glob("video_*.mp4"))
    assert len(videos) == 20 and all(frames(path) == 33 for path in videos)
