"""``triptych bench``: both loops against a whole system, and against a server on which things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import triptych
from deploy.onebox import OneBox
from orchestrator.bench.outcome import Distribution, Outcome, Summary, stages_of
from orchestrator.bench.report import text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    folder = tmp_path_factory.mktemp("bench")
    with (folder / "log").open("wb") as log:
        box = OneBox("emulated:denoise=0.02", data_dir=folder / "data", log=log)
        with box:
            box.wait_ready(60)
            yield box


class Moody(BaseHTTPRequestHandler):
    """A server of the videos API as others build one: no stages, and no luck with some prompts."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[set[str | None]] = set()
    deleted: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Moody.keys.add(self.headers["Authorization"])
        Moody.asked.append(fields)
        if fields["prompt"] == "refuse":
            self._answer(429, {"error": {"message": "later", "code": "queue_full"}})
        elif fields["prompt"] == "nonsense":
            self._answer(200, {"object": "list"})
        else:
            self._answer(200, {"id": f"video_{fields['prompt']}_{len(Moody.asked)}", "status": "queued"})

    def do_GET(self) -> None:
        video_id = self.path.rpartition("/")[2]
        prompt = video_id.split("_")[1]
        if prompt == "gone":
            self._answer(404, {"error": {"message": "no such video", "code": "not_found"}})
        elif prompt == "fail":
            self._answer(200, {"id": video_id, "status": "failed", "error": {"code": "no_luck"}})
        elif prompt == "never":
            self._answer(200, {"id": video_id, "status": "in_progress"})
        else:
            self._answer(200, {"id": video_id, "status": "completed", "inference_time_s": 1.5})

    def do_DELETE(self) -> None:
        Moody.deleted.append(self.path.rpartition("/")[2])
        self._answer(200, {"deleted": True})

    def _answer(self, status: int, reply: dict[str, Any]) -> None:
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what fails."""


@pytest.fixture
def moody() -> Iterator[str]:
    Moody.asked, Moody.keys, Moody.deleted = [], set(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Moody) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def bench(server: str, path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = triptych.main(["bench", "--server", server, "--json", str(path), "--poll", "0.01", *words])
    return code, json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize("loop", [["--concurrency", "3"], ["--rate", "40"]])
def test_both_loops_on_a_whole_system(
    box: OneBox, loop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--requests", "12", "--size", "16x16", "--num-frames", "1", "--steps", "2", "--seed", "5"]
    code, record = bench(box.url, tmp_path / "r", *loop, *words)
    assert code == 0 and record["completed"] == 12 and record["failed"] == 0
    assert {one["number"] for one in record["requests"]} == set(range(12))
    for one in record["requests"]:
        assert one["due"] <= one["sent"] < one["accepted"] < one["ended"]
        assert one["latency"] == pytest.approx(one["ended"] - one["due"])
        assert one["stages"]["denoise"] >= 0.02
    assert {"queue", "encode", "transfer", "denoise", "decode", "save"} <= set(record["stages"])
    seen = list(record["latency"]["percentiles"].values())
    assert seen == sorted(seen) and seen[-1] == max(one["latency"] for one in record["requests"])
    shown = capsys.readouterr().out
    assert "12 completed, 0 failed" in shown and "denoise" in shown and "p99" in shown
    if loop[0] == "--concurrency":  # never more than three at a time
        edges = [(one["sent"], 1) for one in record["requests"]]
        edges += [(one["ended"], -1) for one in record["requests"]]
        level = [sum(step for at, step in edges if at <= moment) for moment, _ in edges]
        assert max(level) <= 3


def test_what_goes_wrong_is_counted_by_reason(
    moody: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("fine\nrefuse\n\nfail\ngone\nnever\nnonsense\n")
    words = ["--requests", "12", "--prompts", str(prompts), "--timeout", "0.05", "--delete"]
    code, record = bench(moody, tmp_path / "r", *words, "--field", "quality=high", "--field", 'n={"a":1}')
    assert code == 0 and record["completed"] == 2 and record["failed"] == 10
    failures = record["failures"]
    assert {reason: count for reason, count in failures.items() if "no video" not in reason} == {
        "refused: 429 queue_full": 2,
        "failed: no_luck": 2,
        "lost: 404 not_found": 2,
        "timed out": 2,
    }
    assert [count for reason, count in failures.items() if "no video" in reason] == [2]
    assert set(record["stages"]) == {"inference"} and record["stages"]["inference"]["mean"] == 1.5
    assert all(one["quality"] == "high" and one["n"] == {"a": 1} for one in Moody.asked)
    assert sum("fine" in video_id for video_id in Moody.deleted) == 3  # the warm-up's is not kept either
    assert "2 x refused: 429 queue_full" in capsys.readouterr().out


def test_each_request_has_a_seed_of_its_own_and_the_key(moody: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    key.chmod(0o600)
    words = ["--api-key-file", str(key), "--requests", "3", "--warm-up", "0", "--prompt", "fine"]
    assert bench(moody, tmp_path / "r", *words, "--seed", "7")[0] == 0
    assert [one["seed"] for one in Moody.asked] == [7, 8, 9]
    assert Moody.keys == {"Bearer 0123456789abcdef"}


def test_an_open_loop_does_not_grow_without_end(moody: str, tmp_path: Path) -> None:
    words = ["--rate", "200", "--requests", "10", "--max-in-flight", "2", "--warm-up", "0"]
    code, record = bench(moody, tmp_path / "r", *words, "--prompt", "never", "--timeout", "0.5")
    assert code == 1 and record["completed"] == 0
    assert record["failures"]["too many in flight"] + record["failures"]["timed out"] == 10
    assert record["failures"]["too many in flight"] >= 1 and len(Moody.asked) < 10


def test_a_duration_ends_the_load(moody: str, tmp_path: Path) -> None:
    code, record = bench(moody, tmp_path / "r", "--duration", "0.3", "--prompt", "fine")
    assert code == 0 and record["completed"] > 1
    assert all(one["sent"] < 0.3 for one in record["requests"])


def test_a_server_that_is_not_there_or_serves_nothing(
    moody: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("http://127.0.0.1:1", tmp_path / "r")[0] == 1
    assert "no connection" in capsys.readouterr().err
    assert bench(moody, tmp_path / "r", "--prompt", "fail")[0] == 1
    assert "no request of the warm-up got its video: failed: no_luck" in capsys.readouterr().err


def test_an_interrupt_reports_and_leaves_no_job_behind(moody: str, tmp_path: Path) -> None:
    words = ["--server", moody, "--prompt", "never", "--warm-up", "0", "--concurrency", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "triptych", "bench", *words, "--json", str(tmp_path / "r")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while len(Moody.asked) < 2:
            assert run.poll() is None
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "interrupted" in errors
    assert json.loads((tmp_path / "r").read_text())["completed"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "0"], ["--rate", "1", "--concurrency", "1"], ["--requests", "0"], ["--field", "x"],
        ["--duration", "inf"],
    ],
)  # fmt: skip
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        triptych.main(["bench", *words])
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err


def outcome(latency: float, failure: str | None = None) -> Outcome:
    return Outcome(0, 1.0, 1.0, 1.5, 1.0 + latency, "v", failure, {"encode": latency / 2})


def test_percentiles_are_values_that_were_seen() -> None:
    seen = Distribution.of([float(value) for value in range(1, 101)])
    assert seen and seen.percentiles == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert seen.mean == 50.5 and Distribution.of([]) is None
    one = Distribution.of([3.0])
    assert one and set(one.percentiles.values()) == {3.0}


def test_failed_requests_have_no_latency() -> None:
    summary = Summary.of([outcome(2.0), outcome(4.0), outcome(90.0, "timed out")])
    assert (summary.completed, summary.failed, summary.seconds) == (2, 1, 90.0)
    assert summary.rate == pytest.approx(2 / 90) and summary.failures == {"timed out": 1}
    assert summary.latency and summary.latency.percentiles["max"] == 4.0
    assert summary.stages["encode"].mean == 1.5
    assert "0 completed" in text(Summary.of([]))


def test_stages_are_what_the_server_tells() -> None:
    assert stages_of({"stage_durations": {"a": 1, "b": None, "c": True}, "inference_time_s": 2}) == {"a": 1.0}
    assert stages_of({"inference_time_s": 2}) == {"inference": 2.0}
    assert stages_of({"stage_durations": [1], "inference_time_s": float("nan")}) == {}
