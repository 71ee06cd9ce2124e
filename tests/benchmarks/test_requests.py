"""The benchmark of whole requests: it measures what is asked for, judges it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.connection import Connection
from benchmarks.requests import polls
from benchmarks.requests.latency import TINY
from benchmarks.requests.rows import TOPIC
from benchmarks.row import HEADING, Effort, Goal, Report, Round, Row, middle
from benchmarks.runner import main
from benchmarks.system import cpu_seconds, named, resident_bytes, running
from deploy.onebox import OneBox
from tests.benchmarks.processes import alive, state

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.requests")


@pytest.fixture(scope="module")
def box() -> Iterator[OneBox]:
    with running("emulated:", roles=("--max-pixels", "4096")) as box:
        yield box


@pytest.fixture
def connection(box: OneBox) -> Iterator[Connection]:
    with Connection(box.port) as connection:
        yield connection


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def has_started_all(pid: int) -> bool:
    """And waits now. Python loses an interrupt that comes while it returns from a fork."""
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children(pid)]
    return sum(b"triptych" in command for command in commands) == 4 and state(pid) == "S"


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def report(goal: Goal, *values: float) -> Report:
    row = Row("name", "what", goal, lambda effort: iter(()))
    return Report(row, [Round(value) for value in values], load=0.5, others=0.25)


def test_the_median_is_held_against_the_goal() -> None:
    most = Goal(5, "ms")
    assert report(most, 4, 5, 90).met and not report(most, 4, 5.1, 90).met
    least = Goal(0.95, at_least=True)
    assert report(least, 0.1, 0.95, 1).met and not report(least, 0.1, 0.94, 1).met
    assert report(Goal(0), 0, 0).met and not report(Goal(0), 1, 1).met
    line = dict(zip(HEADING, report(most, 4, 6, 90).line(), strict=True))
    assert line == {
        "row": "name", "what": "what", "measured": "6.00 ms", "rounds": "4.00..90.0", "goal": "<= 5 ms",
        "": "missed", "others": "0.250",
    }  # fmt: skip
    assert middle([Round(0, {"a": {"b": value}}) for value in (1, 9, 3)], "a", "b") == 3


def test_a_quick_run_measures_what_is_asked_for(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    run = subprocess.run(
        [*COMMAND, "--quick", "--rounds", "2", "--json", str(lines), "tiny", "rate"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    records = {record["row"]: record for record in map(json.loads, lines.read_text().splitlines())}
    assert list(records) == ["tiny", "rate"]
    for record in records.values():
        values = sorted(one["value"] for one in record["rounds"])
        assert len(values) == 2 and 0 < values[0] <= record["measured"] <= values[1]
        goal = record["goal"]
        met = record["measured"] >= goal if record["at_least"] else record["measured"] <= goal
        assert record["met"] == met and record["quick"] and record["versions"]["grpcio"]
        (shown,) = [line for line in run.stdout.splitlines() if line.startswith(f"| {record['row']} ")]
        assert ("met" if met else "missed") in [cell.strip() for cell in shown.split("|")]
    seen = records["tiny"]["rounds"][0]["raw"]
    assert set(seen["cpu"]) == {"orchestrator", "encoder", "denoiser", "decoder"} and all(
        seen["cpu"].values()
    )
    assert seen["medians"]["server"] > sum(
        seen["medians"][stage] for stage in ("encode", "denoise", "decode")
    )


def test_a_journey_ends_with_a_completed_video(connection: Connection) -> None:
    journey = connection.generate({**TINY, "seed": 3})
    assert journey.video["status"] == "completed" and journey.video["size"] == "16x16"
    assert journey.total > 0 and journey.polls >= 1
    timeline = connection.timeline(journey.video["id"])
    assert timeline["completed_at"] - timeline["created_at"] < journey.total
    waited = connection.sync({**TINY, "seed": 3})
    assert waited.video["status"] == "completed" and waited.polls == 0 and waited.total > 0
    assert waited.video["frames_xxh3"] == journey.video["frames_xxh3"]


def test_a_row_without_a_goal_is_neither_met_nor_missed() -> None:
    row = Row("name", "what", None, lambda effort: iter(()), unit="ms")
    seen = Report(row, [Round(1.0), Round(3.0)], load=0.5, others=0.25)
    assert seen.met is None and seen.line()[4:6] == ["", ""] and seen.line()[2] == "2.00 ms"
    record = seen.record("topic")
    assert (record["benchmark"], record["met"], record["goal"], record["unit"]) == ("topic", None, None, "ms")
    assert (record["lowest"], record["measured"], record["highest"]) == (1.0, 2.0, 3.0)


def test_an_error_is_no_result(connection: Connection) -> None:
    with pytest.raises(RuntimeError, match="answered 404"):
        connection.timeline("video_none")
    with pytest.raises(RuntimeError, match=r"answered 400.*size"):
        connection.generate({**TINY, "size": "4096x4096"})


def test_polls_are_counted_and_so_are_those_in_vain(box: OneBox, connection: Connection) -> None:
    ids = [connection.create({**TINY, "seed": seed}) for seed in range(3)]
    before = polls._lag(box.url)
    seen = polls._poll(box.port, ids, connections=3, seconds=2.0)
    assert 57 <= len(seen["polls"] + seen["lists"]) <= 63 and not seen["failures"] and seen["lists"]
    assert min(seen["polls"] + seen["lists"]) > 0
    lags = polls._difference(before, polls._lag(box.url))
    until(lambda: sum(polls._difference(before, polls._lag(box.url)).values()) > 0)
    assert all(count >= 0 for count in lags.values())
    assert polls._failed(connection, ids) == 0
    seen = polls._poll(box.port, ["none"], connections=1, seconds=0.5)
    assert len(seen["failures"]) == len(seen["polls"]) > 0 and "404" in seen["failures"][0]


def test_quantiles_of_a_histogram() -> None:
    before = {0.1: 5.0, 0.2: 5.0, 0.5: 6.0, float("inf"): 6.0}
    after = {0.1: 95.0, 0.2: 104.0, 0.5: 106.0, float("inf"): 106.0}
    counts = polls._difference(before, after)
    assert counts == {0.1: 90, 0.2: 9, 0.5: 1, float("inf"): 0}
    assert polls.quantile(counts, 0.45) == pytest.approx(0.05)
    assert polls.quantile(counts, 0.99) == pytest.approx(0.2)
    assert polls.quantile(counts, 1.0) == 0.5
    assert polls.quantile({0.1: 0.0, float("inf"): 3.0}, 0.5) == 0.1  # all that is known
    assert polls.quantile(dict.fromkeys(counts, 0.0), 0.5) == 0


class Failing(BaseHTTPRequestHandler):
    """Accepts every job, and says at the second look that it failed."""

    protocol_version = "HTTP/1.1"
    status = "queued"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer("queued")

    def do_GET(self) -> None:
        self._answer(Failing.status)
        Failing.status = "failed"

    def _answer(self, status: str) -> None:
        body = json.dumps({"id": "video_1", "status": status, "error": {"code": "no_luck"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what fails."""


def test_a_job_that_failed_is_no_result() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with (
                Connection(server.server_port) as connection,
                pytest.raises(RuntimeError, match=r"video_1 failed.*no_luck"),
            ):
                connection.generate(TINY)
        finally:
            server.shutdown()
            thread.join()


def test_what_the_kernel_says_of_a_process(box: OneBox) -> None:
    mine = os.getpid()
    before, now, after = cpu_seconds(mine), time.process_time(), cpu_seconds(mine)
    assert before <= now <= after
    pid = named(box, "orchestrator").pid
    idle = cpu_seconds(pid)
    with Connection(box.port) as connection:
        connection.generate(TINY)
    assert cpu_seconds(pid) > idle
    held = resident_bytes(mine)
    ballast = bytearray(os.urandom(1 << 16) * 512)  # 32 MiB, written
    assert resident_bytes(mine) > held + (24 << 20)
    del ballast


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "tiny"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # what a SIGKILL leaves there goes with it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        until(lambda: has_started_all(run.pid))
        processes = children(run.pid)
        os.kill(run.pid, number)
        assert run.wait(60) == code
    until(lambda: not any(map(alive, processes)))


def test_rows_can_be_told_apart() -> None:
    names = [row.name for row in TOPIC.rows]
    assert {"tiny", "tensors", "wan", "rate", "cpu", "polls"} == set(names) and len(names) == 6
    assert len({row.what for row in TOPIC.rows}) == len(names) and set(TOPIC.short) <= set(names)
    full, quick, short = Effort(), Effort(quick=True), Effort(short=True)
    assert [effort.count(50, 1) for effort in (full, quick, short)] == [50, 1, 20]


def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TOPIC, ["--quick", "pigeon"]) == 2
    assert "pigeon" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(TOPIC, ["--rounds", "0"])
    assert ended.value.code == 2
