"""Split and fused: requests in turns; which kind memory is of, and how much of it weights have added."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.row import Goal, Report, Row
from benchmarks.split import latency, memory
from benchmarks.system import resident_by_kind, resident_bytes
from transfer.arena import Arena

MB = 10**6
PAGES = 64 << 20  # much more than anything else here takes or gives back meanwhile


def _taken(kind: str, path: Path) -> contextlib.AbstractContextManager[object]:
    if kind == "shared":
        return contextlib.closing(Arena("test", PAGES))
    return _file(path) if kind == "files" else _own()


def _file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
        return mmap.mmap(file.fileno(), PAGES, flags=flags, prot=mmap.PROT_READ)


def _own() -> mmap.mmap:
    taken = mmap.mmap(-1, PAGES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, PAGES, mmap.PAGESIZE):
        taken[page] = 1
    return taken


@pytest.mark.parametrize("kind", memory.KINDS)
def test_memory_is_counted_as_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(PAGES))
    if kind == "files" and _is_tmpfs(tmp_path):
        pytest.skip("a file there is memory that is shared")
    before = resident_by_kind(os.getpid())
    with _taken(kind, path):
        after = resident_by_kind(os.getpid())
    grown = {name: after[name] - before[name] for name in memory.KINDS}
    assert grown.pop(kind) == pytest.approx(PAGES, rel=0.1)
    assert all(abs(other) < PAGES / 10 for other in grown.values())


def _is_tmpfs(folder: Path) -> bool:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(point), kind) for _, point, kind, *_ in mounts if folder.is_relative_to(point)]
    return max(holding)[1] == "tmpfs"


def test_all_kinds_together_are_what_a_process_has() -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    (resident,) = (int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))
    assert resident_bytes(os.getpid()) == pytest.approx(resident, rel=0.05)


def test_a_process_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it ended, and nobody asked how
        with pytest.raises(ProcessLookupError, match="no memory any more"):
            resident_bytes(process.pid)


def test_the_greediest_role_is_held_against_the_goal_and_its_growth_is_shown_by_kind() -> None:
    before = {
        name: {"files": 100 * MB, "shared": 1 * MB, "own": 300 * MB} for name in (*memory.WEIGHTS, "fused")
    }
    after = {**before, "fused": {"files": 350 * MB, "shared": 1 * MB, "own": 300 * MB}}
    after["denoiser"] = {"files": 200 * MB, "shared": 10 * MB, "own": 316 * MB}
    after["encoder"] = {"files": 250 * MB, "shared": 8 * MB, "own": 301 * MB}
    added = {"encoder": 150 * MB, "denoiser": 100 * MB, "decoder": 0}
    one = memory.compared(before, after, added)
    assert one.value == 1.25
    row = Row("memory", "what", Goal(1.05), lambda effort: iter(()))
    lines = memory.table([Report(row, [one], 0.0, 0.0)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][-3:] == ["files", "shared", "own"]
    assert cells[2:] == [
        ["memory", "encoder", "401", "559", "150", "158", "150", "7", "1"],
        ["memory", "denoiser", "401", "526", "100", "125", "100", "9", "16"],
        ["memory", "decoder", "401", "401", "0", "0", "0", "0", "0"],
        ["memory", "fused", "401", "651", "250", "250", "250", "0", "0"],
    ]


@contextlib.contextmanager
def asked(name: str, order: list[tuple[str, int]], seconds: float, frames: str = "") -> Iterator[latency.Ask]:
    """In place of processes: answers that are known."""

    def ask(seed: int) -> latency.Sample:
        order.append((name, seed))
        stages = {"encode": 0.1 * seconds, "denoise": 0.5 * seconds, "decode": 0.3 * seconds}
        return latency.Sample(seconds * (seed or 100), stages, frames or str(seed))

    yield ask


def test_requests_take_turns_and_the_first_counts_for_nothing() -> None:
    order: list[tuple[str, int]] = []
    ways = {
        "split": lambda: asked("split", order, 2.2),
        "fused": lambda: asked("fused", order, 2.0),
    }
    one = latency.round_of(ways, pairs=3)
    assert [name for name, _ in order] == ["split", "fused", "fused", "split"] * 2
    assert [seed for _, seed in order] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert one.value == pytest.approx(1.1)
    assert (one.raw["split"], one.raw["fused"]) == pytest.approx((4.4, 4.0))
    report = Report(Row("latency", "", None, lambda effort: iter(())), [one], 0.0, 0.0)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in latency.table([report]).splitlines()
    ]
    assert lines[3] == ["latency", "denoise", "1.10", "1.00", "1.10"]
    assert lines[5][:3] == ["latency", "all else", "2.42"]


def test_other_frames_end_the_measurement() -> None:
    ways = {"split": lambda: asked("split", [], 1, "a"), "fused": lambda: asked("fused", [], 1, "b")}
    with pytest.raises(RuntimeError, match="seed 0: split and fused made different frames"):
        latency.round_of(ways, pairs=1)
