"""The commands as a person types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.onebox import OneBox
from deploy.ports import free_port

TRIPTYCH = [sys.executable, "-m", "triptych"]
COMMANDS = ["up", "generate", "orchestrator", "encoder", "denoiser", "decoder", "demo"]


def triptych(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRIPTYCH, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str) -> None:
    result = triptych(command, "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert f"triptych {command}" in result.stdout
    assert command in triptych("--help").stdout


def test_a_folder_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    for role in ("encoder", "decoder"):
        result = triptych(
            role, "--model", str(tmp_path), "--url", f"grpc://127.0.0.1:{free_port()}", "--log-level", "error"
        )
        assert result.returncode == 2
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1 and str(tmp_path) in lines[0] and "model_index.json" in lines[0], result.stderr


@pytest.mark.parametrize("command", ["up", "demo"])
def test_launchers_refuse_it_before_they_start_anything(command: str, tmp_path: Path) -> None:
    for model, expected in ((str(tmp_path), "model_index.json"), (str(tmp_path / "none"), "no such folder")):
        result = triptych(command, "--model", model)
        assert result.returncode == 2
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1 and model in lines[0] and expected in lines[0], result.stderr


def test_a_bad_url_is_an_error_of_the_option() -> None:
    result = triptych("encoder", "--model", "m", "--url", "http://127.0.0.1")
    assert result.returncode == 2 and "--url" in result.stderr


def test_generate_saves_a_video_and_says_where_the_time_went(box: OneBox, tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    result = triptych(
        "generate", "a prompt", "-o", str(path), "--server", box.url, "--size", "64x64", "--num-frames", "5",
        "--steps", "2", "--seed", "1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert path.stat().st_size > 0 and str(path) in result.stdout
    for phase in ("queue", "encode", "transfer", "denoise", "decode", "save"):
        assert phase in result.stdout


def test_generate_reports_a_refused_request_in_one_line(box: OneBox, tmp_path: Path) -> None:
    result = triptych(
        "generate", "a prompt", "-o", str(tmp_path / "x.mp4"), "--server", box.url, "--size", "65x64"
    )
    assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1 and "size" in result.stderr
    assert not (tmp_path / "x.mp4").exists()


def wait_for(path: Path, text: str, seconds: float = 120.0) -> str:
    deadline = time.monotonic() + seconds
    while text not in (content := path.read_text()):
        assert time.monotonic() < deadline, content
        time.sleep(0.05)
    return content


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_up(tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path]:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *TRIPTYCH,
                "up",
                "--model",
                "emulated:",
                "--port",
                str(free_port()),
                "--data-dir",
                str(tmp_path / "d"),
            ],
            stdout=file,
            stderr=file,
        )
    wait_for(log, "ready at http://")
    return process, log


def test_up_runs_until_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    process, log = start_up(tmp_path)
    pids = children(process.pid)
    assert len(pids) == 4
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(alive(pid) for pid in pids)
    assert "Traceback" not in log.read_text()


def test_up_reports_a_child_that_dies(tmp_path: Path) -> None:
    process, log = start_up(tmp_path)
    victim = next(p for p in children(process.pid) if b"denoiser" in Path(f"/proc/{p}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)
    assert process.wait(60) == 1
    assert "denoiser grpc://" in log.read_text() and "exit code -9" in log.read_text()


def test_up_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    process, _ = start_up(tmp_path)
    pids = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
