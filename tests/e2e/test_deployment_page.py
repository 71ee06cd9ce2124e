"""The commands of the deployment page, run as they stand there, with this host in the place of the nodes."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.ports import free_port
from services.media.encoders import NVENC, problem

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def role_commands(tmp_path: Path) -> tuple[list[list[str]], str]:
    """The four commands under "One role for each node", and the URL at which they serve."""
    section = PAGE.read_text().partition("## One role for each node")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    text = block[1].replace("MODEL", "emulated:").replace("cuda:0", "cpu").replace("/srv", str(tmp_path))
    for node in ("node-a", "node-b", "node-c"):
        text = text.replace(node, "127.0.0.1")
    for port in sorted(set(re.findall(r"\b30\d{3}\b", text))):
        text = text.replace(port, str(free_port()))
    (http_port,) = re.findall(r"--port (\d+)", text)
    return [line.split()[1:] for line in text.strip().splitlines()], f"http://127.0.0.1:{http_port}"


@contextmanager
def running(commands: list[list[str]], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    with log.open("wb") as file:
        processes = [
            subprocess.Popen([sys.executable, "-m", "triptych", *words], stdout=file, stderr=file)
            for words in commands
        ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(30) for process in processes]
    assert codes == [0] * len(codes), log.read_text()


def wait_ready(server: str, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline, log.read_text()
        assert all(process.poll() is None for process in processes), log.read_text()
        try:
            with urllib.request.urlopen(f"{server}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)


def test_each_role_on_its_own_node_in_any_order(tmp_path: Path) -> None:
    commands, server = role_commands(tmp_path)
    assert sorted(words[0] for words in commands) == ["decoder", "denoiser", "encoder", "orchestrator"]
    random.Random(3).shuffle(commands)
    log, video = tmp_path / "log", tmp_path / "video.mp4"
    with running(commands, log) as processes:
        wait_ready(server, processes, log)
        generate = [
            sys.executable,
            "-m",
            "triptych",
            "generate",
            "a prompt",
            "-o",
            str(video),
            "--server",
            server,
        ]
        subprocess.run(generate, check=True, timeout=60)
        assert video.stat().st_size > 0


def test_a_file_on_a_disk_that_the_orchestrator_cannot_see_comes_from_the_decoder(tmp_path: Path) -> None:
    commands, server = role_commands(tmp_path)
    for words in commands:
        if words[0] == "decoder":
            words[words.index("--output") + 1] = str(tmp_path / "elsewhere")
    log, video = tmp_path / "log", tmp_path / "video.mp4"
    with running(commands, log) as processes:
        wait_ready(server, processes, log)
        generate = [
            sys.executable,
            "-m",
            "triptych",
            "generate",
            "a prompt",
            "-o",
            str(video),
            "--server",
            server,
        ]
        subprocess.run(generate, check=True, timeout=60)
        (written,) = (tmp_path / "elsewhere").iterdir()
        assert video.read_bytes() == written.read_bytes()
        (job,) = re.findall(r"job=(video_\w+) state=completed", log.read_text())
        request = urllib.request.Request(f"{server}/v1/videos/{job}", method="DELETE")
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
        assert not written.exists()


def test_a_decoder_that_hands_its_files_over_keeps_none(tmp_path: Path) -> None:
    commands, server = role_commands(tmp_path)
    for words in commands:
        if words[0] == "decoder":
            words += ["--return", "bytes", "--video-encoder", "auto"]
    log, video = tmp_path / "log", tmp_path / "video.mp4"
    with running(commands, log) as processes:
        wait_ready(server, processes, log)
        generate = [sys.executable, "-m", "triptych", "generate", "a prompt", "-o", str(video)]
        subprocess.run([*generate, "--server", server], check=True, timeout=60)
        (copy,) = (tmp_path / "triptych" / "copies").iterdir()
        assert video.read_bytes() == copy.read_bytes() != b""
        deadline = time.monotonic() + 30
        while list((tmp_path / "videos").iterdir()):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    assert "video encoder: " in log.read_text()


@pytest.mark.skipif(not problem(NVENC), reason="this machine has NVENC")
def test_nvenc_that_is_not_there_is_a_reason_not_to_start(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "triptych",
        "decoder",
        "--model",
        "emulated:",
        "--video-encoder",
        "nvenc",
    ]
    where = ["--url", f"grpc://127.0.0.1:{free_port()}", "--output", str(tmp_path)]
    ended = subprocess.run([*command, *where], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("triptych decoder: NVENC does not encode here: ")
    assert "Traceback" not in ended.stderr
