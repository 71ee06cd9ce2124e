"""docs/clients.md: each block of the page, run as it stands there. Only the address is another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from deploy.onebox import OneBox
from tests.clients.environments import AIPERF, NODE_MODULES, OPENAI_2, ROOT, need, need_command
from tests.clients.servers import READY_SECONDS, Servers
from tests.clients.tokenizer import seed_cache

PAGE = ROOT / "docs" / "clients.md"
ADDRESS = re.compile(r"(127\.0\.0\.1|localhost):30010\b")


def blocks(section: str, url: str) -> list[tuple[str, str]]:
    """Language and text of each block under a heading."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    port = url.rpartition(":")[2]
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found and ":30010" in found[0][1]
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
    with_blocks = [name for name, text in sections if "```" in text]
    assert with_blocks == ["curl", "Python", "Node", "Images", "AIPerf"]


def test_curl(system: Servers, tmp_path: Path) -> None:
    need_command("curl")
    found = blocks("curl", system.url)
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
    ((language, script),) = blocks("Python", system.url)
    assert language == "python"
    lines = run([need(python), "-c", script], tmp_path).splitlines()
    assert "completed 100 a blue square moving right" in lines[0]
    assert "completed 100 a red circle moving right" in lines[1]
    assert lines[-1].startswith("size invalid_value ")
    assert frames(tmp_path / "circle.mp4") == 41
    assert b"WEBP" in (tmp_path / "circle.webp").read_bytes()[:16]


def test_node(system: Servers, tmp_path: Path) -> None:
    ((language, script),) = blocks("Node", system.url)
    assert language == "js"
    (tmp_path / "node_modules").symlink_to(need(NODE_MODULES))
    (tmp_path / "circle.mjs").write_text(script)
    run([need_command("node"), "circle.mjs"], tmp_path)
    assert frames(tmp_path / "circle.mp4") == 41


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a model that makes images."""
    directory = tmp_path_factory.mktemp("painter")
    with (directory / "log").open("wb") as log:
        box = OneBox(
            "emulated:output=image,images=0-1",
            data_dir=directory / "data",
            role_arguments=["--max-pixels", str(1024 * 1024)],  # as a FLUX has by itself
            log=log,
        )
        with box:
            box.wait_ready(READY_SECONDS)
            yield box.url
    print((directory / "log").read_text())


@pytest.mark.parametrize("python", [Path(sys.executable), OPENAI_2], ids=["3", "2"])
def test_images_by_python(painter: str, tmp_path: Path, python: Path) -> None:
    language, script = blocks("Images", painter)[1]
    assert language == "python"
    run([need(python), "-c", script], tmp_path)
    assert made(tmp_path) == {"circle0.png": "PNG", "circle1.png": "PNG", "night.webp": "WEBP"}


def test_images_by_curl(painter: str, tmp_path: Path) -> None:
    need_command("curl")
    language, script = blocks("Images", painter)[0]
    assert language == "bash"
    run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
    assert sorted(made(tmp_path).values()) == ["PNG", "PNG", "WEBP"]


def test_images_by_node(painter: str, tmp_path: Path) -> None:
    language, script = blocks("Images", painter)[2]
    assert language == "js"
    (tmp_path / "node_modules").symlink_to(need(NODE_MODULES))
    (tmp_path / "circle.mjs").write_text(script)
    run([need_command("node"), "circle.mjs"], tmp_path)
    assert made(tmp_path) == {"circle0.png": "PNG", "circle1.png": "PNG", "night.webp": "WEBP"}


def made(directory: Path) -> dict[str, str | None]:
    """The formats of the pictures there, all of which can be read and have the size that was asked for."""
    found = {}
    for path in (*directory.glob("*.png"), *directory.glob("*.webp")):
        with Image.open(path) as image:
            image.load()
            assert image.size == (1024, 1024)
            found[path.name] = image.format
    return found


def test_aiperf(system: Servers, tmp_path: Path) -> None:
    """Its tokenizer is a stand-in under the name that the page gives: nothing is downloaded."""
    (first, command), (second, script) = blocks("AIPerf", system.url)
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
