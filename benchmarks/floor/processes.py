"""The floor's processes, started for a measurement; each says its port when it serves."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floor.clip import TINY_CLIP, Clip
from benchmarks.machine import ROOT
from benchmarks.peers.apps.stages import Work
from benchmarks.system import START_SECONDS
from deploy.onebox import die_with_parent


@dataclass(frozen=True)
class Running:
    """The port of the server, and the process ids by name."""

    port: int
    pids: Mapping[str, int]


@contextlib.contextmanager
def floor(threads: int = 0, clip: Clip = TINY_CLIP, tensors: Work | None = None) -> Iterator[Running]:
    """The server and its three stages, ready; no process is left behind. RuntimeError when one does not
    come up. So many ``threads`` write videos; with none, the decoder's event loop does. ``tensors`` of these
    sizes lie in memory, for one request at a time; without, small ones travel in the messages.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-floor-") as scratch, contextlib.ExitStack() as stack:
        videos = Path(scratch) / "videos"
        videos.mkdir()
        writes = ["--videos", str(videos), "--threads", str(threads), "--clip", *clip.words()]
        reads, embeddings, latents = [], [], []
        if tensors is not None:
            reads = ["--reads"]
            embeddings = ["--makes", str(tensors.embeddings)]
            latents = ["--makes", str(tensors.latents)]
        found = {
            name: stack.enter_context(process("stage", *arguments))
            for name, arguments in (
                ("encoder", embeddings),
                ("denoiser", [*reads, *latents]),
                ("decoder", [*reads, *writes]),
            )
        }
        stages = [str(port) for _, port in found.values()]
        pid, port = stack.enter_context(process("server", "--data", scratch, "--stages", *stages))
        yield Running(port, {"server": pid, **{name: pid for name, (pid, _) in found.items()}})


@contextlib.contextmanager
def process(module: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """The id of a process of ours, and the port that it serves."""
    command = [sys.executable, "-m", f"benchmarks.floor.{module}", *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True, preexec_fn=die_with_parent,
        ) as child,
    ):  # fmt: skip
        try:
            assert child.stdout is not None
            ready, _, _ = select.select([child.stdout], [], [], START_SECONDS)
            line = child.stdout.readline() if ready else b""
            if not line:
                log.seek(0)
                tail = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"the floor's {module} did not come up\n{tail}")
            yield child.pid, int(line)
        finally:
            child.kill()  # nothing of it is kept
