"""The system under measurement, as ``triptych up`` starts it, and what the kernel says of its processes."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.onebox import OneBox, Process

START_SECONDS = 240.0
ROLES = ("encoder", "denoiser", "decoder")
QUIET = ("--log-level", "warning")  # a line for each stage is for people, and a disk away from nothing


@contextlib.contextmanager
def running(
    model: str,
    counts: Mapping[str, int] | None = None,
    *,
    server: Sequence[str] = (),
    roles: Sequence[str] = (),
    encoder: Sequence[str] = (),
) -> Iterator[OneBox]:
    """All processes, ready for requests; ``server``, ``roles`` and ``encoder`` are options of theirs.

    RuntimeError, with the end of their log, when they do not come up.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        path = Path(scratch) / "log"
        with path.open("wb") as log:
            box = OneBox(
                model,
                counts=dict(counts or {}),
                data_dir=Path(scratch) / "data",
                server_arguments=[*QUIET, *server],
                role_arguments=[*QUIET, *roles],
                encoder_arguments=encoder,
                log=log,
            )
            with box:
                try:
                    box.wait_ready(START_SECONDS)
                except RuntimeError as error:
                    raise RuntimeError(f"{error}\n{path.read_text(errors='replace')[-2000:]}") from None
                yield box


def until_ready(port: int, process: Process, seconds: float) -> None:
    """Returns when the orchestrator there has all its roles; RuntimeError if it ends or the time does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/peers", timeout=5.0) as reply:
                if all(peer["state"] == "ready" for peer in json.load(reply)["data"]):
                    return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{process.name} ended with exit code {process.returncode}") from None
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.name} was not ready after {seconds:.0f} s")
        time.sleep(0.1)


def named(box: OneBox, kind: str) -> Process:
    """The first process of this kind: ``orchestrator`` or a role."""
    return next(process for process in box.processes if process.name.split()[0] == kind)


def cpu_seconds(pid: int) -> float:
    """What a process has used, with those of its threads that have ended."""
    # The kernel's number for the CPU-time clock of a process, as clock_getcpuclockid makes it: /proc counts
    # hundredths of seconds.
    return time.clock_gettime((~pid << 3) | 2)


def starved_seconds(pid: int) -> float:
    """For how long the first thread of a process was ready and had no core; 0 where that is not known."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


def resident_bytes(pid: int) -> int:
    """Memory that a process has mapped and in use, files it has mapped included."""
    return sum(resident_by_kind(pid).values())


def resident_by_kind(pid: int) -> dict[str, int]:
    """The same in parts.

    ``files`` are mapped, as weights are that are used as they lie on the disk (on a tmpfs: ``shared``).
    ``shared`` are arenas: its own, and what it has read of its peers'. ``own`` is all else, with what was
    freed and its allocator keeps.
    """
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has no memory any more")
    fields = {"files": "RssFile", "shared": "RssShmem", "own": "RssAnon"}
    return {kind: int(status[field].split()[0]) << 10 for kind, field in fields.items()}
