"""Triptych and its peers, started for one measurement, each as its own documentation tells."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.environments import MOSEC, RAY_SERVE, Environment
from benchmarks.peers.target import Reply, RequestError, Target, open_connection, post
from benchmarks.requests.latency import TINY
from benchmarks.system import START_SECONDS, running
from deploy.onebox import OneBox, die_with_parent
from deploy.ports import free_port

STOP_SECONDS = 30.0
PROMPTS = 4  # different ones: what is wrong with one must not look right for another
MOSEC_TIMEOUT_MS = 30_000  # its default, 3 s, is less than some requests take under load


def _prompt(number: int) -> str:
    return f"prompt {number % PROMPTS}"


def ask_for_video(
    connection: http.client.HTTPConnection, number: int, path: str = "/v1/videos/sync"
) -> Reply:
    """A tiny request that is answered with its file. Raises RequestError for any other answer."""
    response, body = post(connection, path, {**TINY, "prompt": _prompt(number), "seed": 0})
    if body[4:8] != b"ftyp":
        raise RequestError(f"the answer is no MP4 file: {body[:16]!r}")
    return Reply(video_id=response.headers["X-Video-Id"])


@dataclass
class TriptychTarget:
    """``triptych up`` with its jobs in SQLite, as users run it: the answer is the video file."""

    box: OneBox
    name: str = "triptych"

    @property
    def port(self) -> int:
        return self.box.port

    def request(self, connection: http.client.HTTPConnection, number: int) -> Reply:
        return ask_for_video(connection, number)


@dataclass
class PeerTarget:
    """Answers with the digest of the latents, which says whether all tensors arrived."""

    name: str
    port: int
    path: str
    work: Work
    process: subprocess.Popen[bytes]
    _expected: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._expected = {prompt: self.work.expected(prompt) for prompt in map(_prompt, range(PROMPTS))}

    def request(self, connection: http.client.HTTPConnection, number: int) -> Reply:
        prompt = _prompt(number)
        _, body = post(connection, self.path, {"prompt": prompt})
        answer: dict[str, Any] = json.loads(body)
        if answer["digest"] != self._expected[prompt]:
            raise RequestError("the latents' digest is wrong")
        return Reply(denoiser=answer["denoiser"])


@dataclass(frozen=True)
class System:
    """``start`` yields it ready for requests, and leaves no process behind."""

    name: str
    start: Callable[[Work], AbstractContextManager[Target]]
    environment: Environment | None = None  # None: our own

    def installed(self) -> bool:
        return self.environment is None or self.environment.installed()


@contextlib.contextmanager
def _triptych(work: Work) -> Iterator[Target]:
    model = f"emulated:embeddings={work.embeddings},latents={work.latents},denoise={work.denoise}"
    with running(model, {"denoiser": work.denoisers}) as box:
        yield TriptychTarget(box)


@contextlib.contextmanager
def _ray_serve(work: Work) -> Iterator[Target]:
    with _peer("ray-serve", RAY_SERVE, "ray_serve", "/", work, ()) as target:
        yield target


@contextlib.contextmanager
def _mosec(work: Work) -> Iterator[Target]:
    words = ("--address", "127.0.0.1", "--timeout", str(MOSEC_TIMEOUT_MS), "--log-level", "warning")
    with _peer("mosec", MOSEC, "mosec_pipeline", "/inference", work, words) as target:
        yield target


@contextlib.contextmanager
def _peer(
    name: str, environment: Environment, module: str, path: str, work: Work, words: Sequence[str]
) -> Iterator[PeerTarget]:
    port = free_port()
    command = [str(environment.python), "-m", f"benchmarks.peers.apps.{module}"]
    command += ["--port", str(port), *work.words(), *words]
    with tempfile.TemporaryDirectory(prefix="triptych-peer-") as scratch:
        log_path = Path(scratch) / "log"
        surroundings = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": scratch,  # whatever a peer keeps there goes with it
            "TMPDIR": scratch,
            "RAY_FOLDER": str(Path(scratch) / "ray"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with (
            log_path.open("wb") as log,
            subprocess.Popen(
                command, cwd=scratch, env=surroundings, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
            ) as process,
        ):  # fmt: skip
            target = PeerTarget(name, port, path, work, process)
            try:
                _wait_ready(target, log_path)
                yield target
            finally:
                _stop(process)


def _wait_ready(target: PeerTarget, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.closing(open_connection(target)) as connection:
            try:
                target.request(connection, 0)
                return
            except (RequestError, ValueError, LookupError) as error:
                if target.process.poll() is not None or time.monotonic() > deadline:
                    tail = log_path.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{target.name} did not come up: {error}\n{tail}") from error
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


SYSTEMS = (
    System("triptych", _triptych),
    System("ray-serve", _ray_serve, RAY_SERVE),
    System("mosec", _mosec, MOSEC),
)


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    environments = [system.environment for system in SYSTEMS if system.environment and system.installed()]
    return {environment.package: environment.version() for environment in environments}
