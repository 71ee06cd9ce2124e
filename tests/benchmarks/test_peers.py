"""The peers beside Triptych: the same work, checked answers, failures that count, no process left behind."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.faults import kill
from benchmarks.faults.kill import full_rate_after
from benchmarks.peers import overhead
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import closed_loop, rate
from benchmarks.peers.systems import SYSTEMS, PeerTarget, System
from benchmarks.row import Effort, Report, Round, Row

WORK = Work(4096, 8192)


def descendants(pid: int) -> set[int]:
    """Those of a process that are alive, by their lines in /proc."""
    found: set[int] = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= {int(child)} | descendants(int(child))
    return found


def alive(pid: int) -> bool:
    """Not a zombie either: who reaps it is not ours to say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_answers_and_leaves_nothing_behind(system: System) -> None:
    if not system.installed():
        reason = f"needs {system.name} (made by: make peers)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with system.start(WORK) as target:
        samples = closed_loop(target, 2, requests=6)
        started = descendants(os.getpid())
    assert len(samples) == 6 and not [sample.error for sample in samples if sample.error]
    for sample in samples:
        assert sample.reply and (sample.reply.video_id or sample.reply.denoiser)
        assert sample.ended > sample.started
    assert rate(samples) > 0 and started
    deadline = time.monotonic() + 60  # helpers of a peer end by themselves once it is gone
    while left := {pid for pid in started if alive(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_digest_depends_on_every_stage() -> None:
    seen = {WORK.expected("a"), WORK.expected("b"), Work(4104, 8192).expected("a")}
    assert len(seen | {Work(4096, 8200).expected("a")}) == 4
    embeddings = WORK.encode("a")
    assert embeddings.nbytes == 4096
    assert WORK.decode(WORK.make_latents(embeddings)) == WORK.expected("a")
    embeddings[-1] ^= 1
    assert WORK.decode(WORK.make_latents(embeddings)) != WORK.expected("a")
    assert Work.parse(["--port", "1", *WORK.words(), "--timeout", "5"]) == (WORK, 1)


class Liar(BaseHTTPRequestHandler):
    """Its first answer is right, its second an error, all further ones are wrong."""

    protocol_version = "HTTP/1.1"
    answers = 0

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        Liar.answers += 1
        digest = WORK.expected(prompt) if Liar.answers == 1 else "0" * 16
        body = json.dumps({"digest": digest, "denoiser": 1}).encode()
        self.send_response(500 if Liar.answers == 2 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what fails."""


@pytest.fixture
def liar() -> Iterator[PeerTarget]:
    Liar.answers = 0
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server,
        subprocess.Popen(["sleep", "60"]) as process,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield PeerTarget("liar", server.server_port, "/", WORK, process)
        server.shutdown()
        thread.join()
        process.kill()


def test_errors_and_wrong_answers_count(liar: PeerTarget) -> None:
    errors = [sample.error for sample in closed_loop(liar, 1, requests=3)]
    assert errors[0] is None and "answered 500" in str(errors[1]) and "digest" in str(errors[2])


def test_a_round_with_failures_is_no_figure(liar: PeerTarget) -> None:
    samples = closed_loop(liar, 1, requests=3)
    with pytest.raises(RuntimeError, match="triptych: 2 of 3 requests failed"):
        overhead._figures(SYSTEMS[0], samples)


def figures(p50: float, rate: float) -> dict[str, dict[str, float]]:
    seen = {"requests": 3, "p50": p50, "p10": p50, "p90": p50, "rate": rate}
    return {"one": seen, "many": seen}


def test_ratios_are_of_the_same_round() -> None:
    rounds = [
        Round(0, {"triptych": figures(2, 50), "mosec": figures(1, 100)}),
        Round(0, {"triptych": figures(30, 10), "mosec": figures(10, 40)}),
        Round(0, {"triptych": figures(8, 20), "mosec": figures(2, 90)}),
    ]
    assert overhead.over_peers(rounds, "one", "p50") == {"mosec": 3.0}
    assert overhead.over_peers(rounds, "many", "rate") == {"mosec": 0.25}
    row = Row("tiny", "4 KB", None, lambda effort: iter(()))
    shown = overhead.table([Report(row, rounds, 0.0, 0.0)]).splitlines()
    assert len(shown) == 4 and "x 3.00" in shown[3] and "mosec" in shown[3]
    assert overhead.summary([Round(0, {"triptych": figures(1, 1)})]).endswith("make peers")


def test_the_time_to_full_rate() -> None:
    steady = [tenth / 10 for tenth in range(400)]  # ten a second, for forty seconds
    assert full_rate_after(steady, 10.0, 10.0) == 0
    gap = [end for end in steady if not 10 < end < 15]
    assert full_rate_after(gap, 10.0, 10.0) == pytest.approx(5.0, abs=0.21)
    assert full_rate_after([end for end in steady if end <= 10], 10.0, 10.0) is None
    half = [end for number, end in enumerate(steady) if end < 10 or number % 2]
    assert full_rate_after(half, 10.0, 10.0) is None


def test_effort_of_a_short_run() -> None:
    assert Effort(short=True).count(overhead.SECONDS, 1) < overhead.SECONDS


def test_a_killed_denoiser_is_back_and_nothing_is_lost() -> None:
    (one,) = kill.measure(SYSTEMS[0])(Effort(rounds=1, quick=True))
    assert one.value == 0 and not one.raw["failures"] and not one.raw["wrong"]
    assert one.raw["requests"] >= len(one.raw["ends"]) > 0 and max(one.raw["ends"]) > 0 > min(one.raw["ends"])
