"""The floor beneath a tiny request: it does what it says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import sqlalchemy as sa

from benchmarks.floor import beside, processes
from benchmarks.floor.beside import FloorTarget
from benchmarks.floor.jobs import Jobs
from benchmarks.floor.message import BYTES, first_payload, message, next_payload, split
from benchmarks.floor.processes import floor, process
from benchmarks.floor.rows import TOPIC, table
from benchmarks.floor.stream import Stream
from benchmarks.floor.video import RATE, SIDE, Videos
from benchmarks.peers.load import closed_loop
from benchmarks.peers.target import open_connection, post
from benchmarks.row import Report, Round
from orchestrator.store.database import Database
from services.media.video import VideoWriter
from tests.benchmarks.processes import alive, state

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.floor")


def floors(pid: int) -> list[int]:
    """The floor's processes among the children of a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        found += [int(child)] if b"benchmarks.floor." in words else []
    return found


def test_its_video_is_the_one_that_triptych_writes(tmp_path: Path) -> None:
    colour = b"\x30\x90\xf0"
    videos = Videos(tmp_path)
    path = videos.write("floor", colour)
    videos.close()
    with VideoWriter(tmp_path / "ours.mp4", SIDE, SIDE, float(RATE)) as writer:
        writer.write(np.full((1, SIDE, SIDE, 3), np.frombuffer(colour, np.uint8)))
        writer.finish()
    assert path.read_bytes() == (tmp_path / "ours.mp4").read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {"floor.mp4", "ours.mp4"}


def test_its_commits_are_as_durable_as_those_of_the_job_store(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "floor.sqlite")
    ours = Database(f"sqlite:///{tmp_path / 'ours.sqlite'}")
    with ours.engine.connect() as connection:
        for pragma in ("journal_mode", "synchronous"):
            (kept,) = jobs.connection.execute(f"PRAGMA {pragma}").fetchone()
            assert kept == connection.execute(sa.text(f"PRAGMA {pragma}")).scalar_one()
    ours.close()
    jobs.add("a", "{}")
    assert not jobs.connection.in_transaction
    jobs.complete("a", "a.mp4")
    assert not jobs.connection.in_transaction
    assert jobs.connection.execute("SELECT status, file FROM jobs").fetchall() == [("completed", "a.mp4")]
    jobs.close()


def test_a_frame_of_several_messages() -> None:
    messages = [message(f"{number:032x}", first_payload(f"prompt {number}")) for number in range(3)]
    assert {len(one) for one in messages} == {BYTES} and split(b"".join(messages)) == messages
    assert len(first_payload("é" * 5000)) == len(next_payload(messages[0])) == len(first_payload(""))
    assert next_payload(messages[0]) != next_payload(messages[1])


@pytest.mark.parametrize("threads", [0, 2])
def test_every_request_passes_every_stage(threads: int, tmp_path: Path) -> None:
    with floor(threads) as ground:
        target = FloorTarget(ground.port)
        samples = closed_loop(target, 4, requests=12)
        assert len(samples) == 12 and not [sample.error for sample in samples if sample.error]
        assert len({sample.reply.video_id for sample in samples if sample.reply}) == 12
        connection = open_connection(target)
        _, body = post(connection, "/v1/videos/sync", {"prompt": "a prompt"})
        connection.close()
        pids = list(ground.pids.values())
    payload = first_payload("a prompt")
    for _ in range(3):
        payload = next_payload(payload)
    videos = Videos(tmp_path)
    assert body == videos.write("expected", payload[:3]).read_bytes()
    videos.close()
    with av.open(tmp_path / "expected.mp4") as container:
        assert len(list(container.decode(video=0))) == 1
    assert len(pids) == 4 and not any(map(alive, pids))


async def test_a_stage_that_dies_ends_what_waits_for_it() -> None:
    with process("stage") as (pid, port):
        stream = Stream(port)
        payload = first_payload("a")
        assert await stream.work("0" * 32, payload) == next_payload(payload)
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(stream.work("1" * 32, payload))
        await asyncio.sleep(0)  # it is on its way
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionError):
            await waiting
        with pytest.raises(ConnectionError):
            await stream.work("2" * 32, payload)
        await stream.close()


@pytest.mark.parametrize("threads", ["0", "2"])
async def test_a_video_that_cannot_be_written_ends_the_stream(threads: str, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    with process("stage", "--videos", str(folder), "--threads", threads) as (_, port):
        stream = Stream(port)
        await stream.work("0" * 32, first_payload("a"))
        (folder / f"{'0' * 32}.mp4").unlink()
        folder.rmdir()
        with pytest.raises(ConnectionError):
            await stream.work("1" * 32, first_payload("a"))
        await stream.close()


def test_a_process_that_does_not_come_up(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)stage did not come up.*missing"),
        processes.process("stage", "--videos", str(tmp_path / "missing")),
    ):
        pytest.fail("it came up")


def test_a_quick_run_measures_both(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    run = subprocess.run(
        [*COMMAND, "--quick", "--rounds", "2", "--json", str(lines)],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    records = {record["row"]: record for record in map(json.loads, lines.read_text().splitlines())}
    assert list(records) == [row.name for row in TOPIC.rows] == ["one", "rate", "parts"]
    for name, figure in (("one", "p50"), ("rate", "rate")):
        for one in records[name]["rounds"]:
            ours, least = one["raw"]["triptych"], one["raw"]["floor"]
            assert one["value"] == least[figure] > 0 and records[name]["goal"] is None
            assert one["raw"]["ratio"] == pytest.approx(ours[figure] / least[figure], rel=1e-4)
            assert set(least["cpu"]) == {"server", "encoder", "denoiser", "decoder", "client"}
            assert set(ours["cpu"]) == {"orchestrator", "encoder", "denoiser", "decoder", "client"}
            assert all([*least["cpu"].values(), *ours["cpu"].values()])
    for one in records["parts"]["rounds"]:
        http, commits, stream, file = (one["raw"][name] for name in ("http", "commits", "stream", "file"))
        parts = (http, commits, stream, file, one["raw"]["encode"])
        assert all(part["ms"] > 0 and part["cpu"] > 0 for part in parts)
        whole = http["ms"] + commits["ms"] + 3 * stream["ms"] + file["ms"]
        assert one["value"] == one["raw"]["sum"]["ms"] == pytest.approx(whole, rel=1e-4)
    assert "an MP4 file" in run.stdout and "| tiny requests, 8 clients" in run.stdout


def test_the_table_has_the_middle_of_the_rounds() -> None:
    def seen(p50: float, cpu: float) -> dict[str, object]:
        return {"p50": p50, "cpu": {"server": cpu, "decoder": cpu, "client": 99.0}}

    rounds = [
        Round(floor, {"floor": seen(floor, 1.5), "triptych": seen(ours, 8.0), "ratio": ours / floor})
        for floor, ours in ((5.0, 10.0), (4.0, 12.0), (6.0, 30.0))
    ]
    (row,) = TOPIC.named(["one"])
    cells = [cell.strip() for cell in table([Report(row, rounds, 0.0, 0.25)]).splitlines()[2].split("|")]
    expected = ["5.00 ms", "4.00..6.00", "12.0 ms", "10.0..30.0", "x 3.00", "3.00", "16.0", "0.250"]
    assert cells[2:-1] == expected
    assert beside.cpu_of(rounds[0].raw["floor"]) == 3.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    lines = tmp_path / "log"
    with (
        lines.open("wb") as log,
        subprocess.Popen(
            [*COMMAND, "parts"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},  # what a SIGKILL leaves there goes with it
            stdout=log,
            stderr=log,
        ) as run,
    ):
        deadline = time.monotonic() + 60
        # Four of the floor, and a stage by itself, for which it waits: Python loses an interrupt that comes
        # while it returns from a fork.
        while len(started := floors(run.pid)) < 5 or state(run.pid) != "S":
            assert run.poll() is None and time.monotonic() < deadline, lines.read_text()
            time.sleep(0.01)
        os.kill(run.pid, number)
        assert run.wait(60) == code
    deadline = time.monotonic() + 60
    while any(map(alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
