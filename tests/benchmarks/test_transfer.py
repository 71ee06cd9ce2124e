"""The benchmark of the data plane: it measures everything asked for, and leaves no process behind."""

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.table import Spread, markdown, number
from benchmarks.transfer.__main__ import main
from benchmarks.transfer.buffers import Rotation, region
from benchmarks.transfer.cell import size_name
from benchmarks.transfer.producer import Producer
from benchmarks.transfer.rows import Bench

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.transfer")
NAMES = ["shm", "zmq", "plain-zmq"]
if importlib.util.find_spec("mooncake"):
    NAMES += ["mooncake", "plain-mooncake"]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Not a zombie either: its own parent may be gone, and who reaps it is not ours to say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_quick_run_measures_everything_that_is_installed(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    run = subprocess.run(
        [*COMMAND, "--quick", "--json", str(lines)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = {(name, nbytes) for name in ("memcpy", *NAMES) for nbytes in (10**3, 10**6)}
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {(record["name"], record["nbytes"]) for record in records} == expected
    for record in records:
        assert record["total"]["p10"] <= record["total"]["median"] <= record["total"]["p90"]
        assert (record["put"] is None) == (record["name"] not in ("shm", "zmq", "mooncake"))
        assert record["ratio"] == pytest.approx(record["total"]["median"] / record["floor"])
        assert record["versions"]["torch"] and record["commit"] and record["cores"] > 0
    table = [line.split("|")[1:3] for line in run.stdout.splitlines() if line.startswith("|")]
    shown = {(name.strip(), size.strip()) for size, name in table[2:]}
    assert shown == {(name, size_name(nbytes)) for name, nbytes in expected}


def test_only_what_is_asked_for_is_measured() -> None:
    run = subprocess.run(
        [*COMMAND, "--quick", "--sizes", "5KB", "--rounds", "2", "--engines", "shm"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [line.split("|")[2].strip() for line in run.stdout.splitlines() if "| 5 KB" in line] == [
        "memcpy",
        "shm",
    ]


def producer_of(pid: int) -> int | None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"benchmarks.transfer.producer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


@pytest.mark.parametrize("moment", ["starting", "measuring"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_it(number: signal.Signals, code: int, moment: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    options = ["--quick", "--engines", "shm", "--json", str(lines), "--rounds", "100"]
    command = [*COMMAND, *options, "--sizes", "1KB", "16MB", "42MB", "100MB"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        until(lambda: producer_of(run.pid))
        producer = producer_of(run.pid)
        assert producer
        until(lambda: moment == "starting" or lines.read_text())
        os.kill(run.pid, number)
        assert run.wait(60) == code
    until(lambda: not alive(producer))


@pytest.mark.parametrize(
    "arguments", [["--sizes", "42 apples"], ["--rounds", "1"], ["--engines", "pigeon"], ["--sizes", "0"]]
)
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_bytes_that_changed_are_no_result() -> None:
    rotation = Rotation(5000, 2)
    bench = Bench([rotation], Producer("", [], [rotation]))
    arrived = rotation.pick(region([rotation]), 1).clone()
    bench.check("shm", 1, arrived)
    arrived[4999] ^= 1
    with pytest.raises(RuntimeError, match="shm: turn 1"):
        bench.check("shm", 1, arrived)


def test_buffers_outgrow_the_caches_and_do_not_overlap() -> None:
    rotation = Rotation.over(5000, 100_000)
    assert rotation == Rotation(5000, 20)
    memory = region([Rotation(10, 2), rotation])
    picked = [rotation.pick(memory, turn) for turn in range(20)]
    assert {tensor.nbytes for tensor in picked} == {5000}
    assert all(a.data_ptr() + 5000 <= b.data_ptr() for a, b in itertools.pairwise(picked))
    assert rotation.pick(memory, 20).data_ptr() == picked[0].data_ptr()
    assert Rotation.over(1 << 30, 0).count == 2


def test_numbers_for_people() -> None:
    assert [number(value) for value in (0.01234, 1.234, 12.34, 123.4, 9.999, 99.99)] == [
        "0.012", "1.23", "12.3", "123", "10.0", "100",
    ]  # fmt: skip
    assert Spread.of([*range(11)]) == Spread(5, 1, 9)
    assert [size_name(nbytes) for nbytes in (10, 1000, 42 * 10**6, 1500 * 10**6)] == [
        "10 B", "1 KB", "42 MB", "1.5 GB",
    ]  # fmt: skip
    assert markdown(["a", "b", "c"], [["x", "yy", "1"], ["", "z", "10"]]).splitlines() == [
        "| a | b  |  c |",
        "| - | -- | -: |",
        "| x | yy |  1 |",
        "|   | z  | 10 |",
    ]
