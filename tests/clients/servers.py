"""Real processes for the clients to talk to: one set of roles, and servers in the states clients meet."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.onebox import OneBox
from deploy.ports import free_port

MODEL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # only a name: the emulated model is served under it
API_KEY = "a-key-of-the-tests"
ENVIRONMENT = "TRIPTYCH_TEST_SERVERS"  # of processes that use servers which run already
READY_SECONDS = 240.0


@dataclass(frozen=True)
class Servers:
    """What the clients need to know. URLs are without ``/v1``."""

    url: str  # everybody is served
    keyed_url: str  # with API keys
    stalled_url: str  # has no denoiser, so no video is finished; at most 2 may wait
    model: str
    api_key: str
    webhook_secret: str  # of ``url``
    webhook_port: int  # of 127.0.0.1; nobody listens there yet

    def environment(self) -> dict[str, str]:
        """For a process whose tests are to use these servers."""
        return {**os.environ, ENVIRONMENT: json.dumps(asdict(self))}

    @staticmethod
    def given() -> Servers | None:
        """Those of the process that started this one."""
        text = os.environ.get(ENVIRONMENT)
        return Servers(**json.loads(text)) if text else None


@contextmanager
def running(directory: Path) -> Iterator[Servers]:
    webhook_port = free_port()
    log = directory / "log"
    with log.open("wb") as file:
        box = OneBox(
            "emulated:",
            data_dir=directory / "open",
            server_arguments=["--webhook-allow", f"127.0.0.1:{webhook_port}"],
            role_arguments=["--served-model-name", MODEL],
            log=file,
        )
        try:
            with box:
                keys = directory / "keys"
                keys.touch(mode=0o600)
                keys.write_text(f"tests {API_KEY}\n")
                keyed = another_server(box, directory / "keyed", "--api-key-file", str(keys))
                stalling = ("--max-queue", "2", "--absence-timeout", "86400")
                stalled = another_server(box, directory / "stalled", *stalling, without="denoiser")
                box.wait_ready(READY_SECONDS)
                for url in (keyed, stalled):
                    wait_for_roles(box, url, missing=["denoiser"] if url == stalled else [])
                secret = (directory / "open" / "webhook-secret").read_text().strip()
                yield Servers(box.url, keyed, stalled, MODEL, API_KEY, secret, webhook_port)
        finally:
            print(log.read_text())


def another_server(box: OneBox, data_dir: Path, *arguments: str, without: str = "") -> str:
    """The URL of a further orchestrator over the roles of ``box``, except those of the kind ``without``."""
    port = free_port()
    words = ["--port", str(port), "--data-dir", str(data_dir), *arguments]
    for role, urls in box.role_urls.items():
        if role != without:
            words += [f"--{role}-urls", *urls]
    box._start(data_dir.name, ["orchestrator", *words])
    return f"http://127.0.0.1:{port}"


def wait_for_roles(box: OneBox, url: str, missing: list[str]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert time.monotonic() < deadline and box.dead() is None
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                if json.load(reply)["missing_roles"] == missing:
                    return
        except OSError:
            pass
        time.sleep(0.1)
