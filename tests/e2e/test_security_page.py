"""The security page's commands, run as they stand there, and a real system with what they made."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy import onebox
from deploy.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)


def peers(server: str) -> set[tuple[str, str]]:
    """URL and state of each."""
    with urllib.request.urlopen(f"{server}/v1/peers", timeout=10) as reply:
        return {(entry["url"], entry["state"]) for entry in json.load(reply)["data"]}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_system_with_token_and_certificates(tmp_path: Path) -> None:
    (token,) = [line for block in blocks() for line in block.splitlines() if "keys --token" in line]
    command = [sys.executable, "-m", "triptych", *token.split()[1:]]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
    (certificates,) = [block for block in blocks() if "openssl" in block]
    script = certificates.replace("DNS:node-b", "IP:127.0.0.1")
    subprocess.run(["bash", "-euc", script], check=True, cwd=tmp_path, timeout=60, capture_output=True)

    names = ("cluster.token", "node-b.pem", "node-b.key", "ca.pem")
    options = ("--cluster-token-file", "--tls-cert", "--tls-key", "--tls-ca")
    files = [str(tmp_path / name) for name in names]
    words = [word for pair in zip(options, files, strict=True) for word in pair]
    parser = argparse.ArgumentParser()
    onebox.add_arguments(parser)
    free = ["--port", str(free_port()), "--data-dir", str(tmp_path / "data")]
    box = onebox.OneBox.from_arguments(parser.parse_args(["--model", "emulated:", *free, *words]))
    with (tmp_path / "log").open("wb") as log:
        box._log = log
        with box:
            box.wait_ready(120)
            video = tmp_path / "video.mp4"
            generate = ["generate", "a prompt", "-o", str(video), "--server", box.url]
            subprocess.run([sys.executable, "-m", "triptych", *generate], check=True, timeout=60)
            assert video.stat().st_size > 0
            newcomer = f"grpc://127.0.0.1:{free_port()}"
            arguments = ["encoder", "--model", "emulated:", "--url", newcomer, "--orchestrator", box.url]
            box._start("newcomer", [*arguments, *words])
            deadline = time.monotonic() + 60
            while (newcomer, "ready") not in peers(box.url):
                assert time.monotonic() < deadline and box.dead() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            announcement = urllib.request.Request(
                f"{box.url}/v1/peers",
                data=b'{"url": "grpc://127.0.0.1:1", "role": "encoder"}',
                headers={"Content-Type": "application/json"},
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(announcement, timeout=10)
            refused.value.close()
            assert refused.value.code == 401
    assert Path(files[0]).read_text().strip() not in (tmp_path / "log").read_text()
