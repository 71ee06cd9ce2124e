"""The floor beneath a request: it does what it says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import sqlalchemy as sa
import xxhash

from benchmarks.connection import Connection
from benchmarks.floor import beside, large, processes
from benchmarks.floor.beside import FloorTarget
from benchmarks.floor.clip import FPS, TINY_CLIP, Clip
from benchmarks.floor.jobs import Jobs
from benchmarks.floor.message import BYTES, digest, first_payload, message, noise, split
from benchmarks.floor.processes import floor, process
from benchmarks.floor.rows import TOPIC, table
from benchmarks.floor.stream import Stream
from benchmarks.floor.tensors import Made, Read
from benchmarks.floor.video import Videos
from benchmarks.peers.apps.stages import Work
from benchmarks.peers.load import closed_loop
from benchmarks.peers.target import open_connection, post
from benchmarks.row import Effort, Report, Round
from orchestrator.store.database import Database
from services.media.video import VideoWriter
from tests.benchmarks.processes import alive, state

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.floor")


KEY = b"\x30\x90\xf0 key!"


def colour_of(key: bytes, index: int) -> bytes:
    """Red, green and blue of a frame."""
    return xxhash.xxh3_64_digest(key + bytes([index]))[:3]


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


@pytest.mark.parametrize("clip", [TINY_CLIP, Clip(64, 48, 5), Clip(832, 480, 2)])
def test_its_video_is_the_one_that_triptych_writes(clip: Clip, tmp_path: Path) -> None:
    videos = Videos(tmp_path, clip)
    path = videos.write("floor", KEY)
    videos.close()
    colours = [colour_of(KEY, index) for index in range(clip.frames)]
    assert len(set(colours)) == clip.frames
    with VideoWriter(tmp_path / "ours.mp4", clip.width, clip.height, FPS) as writer:
        for colour in colours:
            writer.write(np.full((1, clip.height, clip.width, 3), np.frombuffer(colour, np.uint8)))
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
    assert len(first_payload("é" * 5000)) == len(noise(digest(messages[0]))) == len(first_payload(""))
    assert digest(messages[0]) != digest(messages[1])


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
    key = digest(first_payload("a prompt"))
    for _ in range(2):
        key = digest(noise(key))
    videos = Videos(tmp_path)
    assert body == videos.write("expected", key).read_bytes()
    videos.close()
    with av.open(tmp_path / "expected.mp4") as container:
        assert len(list(container.decode(video=0))) == 1
    assert len(pids) == 4 and not any(map(alive, pids))


def test_large_tensors_reach_the_frames_whole(tmp_path: Path) -> None:
    """Sizes that are no whole pages, several prompts in turn, and the digest of all their bytes."""
    work, clip = Work(5000 * 8, 300_000 * 8), Clip(32, 32, 3)
    videos = Videos(tmp_path, clip)
    with floor(1, clip, work) as ground, Connection(ground.port) as connection:
        for prompt in ("a", "b", "a"):
            fields = {"prompt": prompt, "size": "32x32", "num_frames": 3}
            video = connection.generate(fields).video
            key = xxhash.xxh3_64_digest(first_payload(prompt))
            for nbytes in (work.embeddings, work.latents):
                key = xxhash.xxh3_64_digest(key * (nbytes // 8))
            expected = videos.write(prompt, key).read_bytes()
            address = f"http://127.0.0.1:{ground.port}/v1/videos/{video['id']}/content"
            with urllib.request.urlopen(address, timeout=60) as reply:
                assert reply.read() == expected
            assert (video["status"], video["progress"], video["size"]) == ("completed", 100, "32x32")
        pids = list(ground.pids.values())
    videos.close()
    assert not any(map(alive, pids))


def test_one_changed_byte_of_a_large_tensor_changes_its_digest() -> None:
    with contextlib.closing(Made(8 * 10_000)) as made:
        read = Read()
        place = made.make(KEY)
        first = read.digest(place)
        assert first == xxhash.xxh3_64_digest(KEY * 10_000)
        for index in (0, 5_000, 9_999):
            made.words[index] ^= 1
            assert read.digest(place) != first
            made.make(KEY)
        assert read.digest(place) == first


def test_a_video_whose_stage_dies_has_failed() -> None:
    with floor(1) as ground, Connection(ground.port) as connection:
        os.kill(ground.pids["denoiser"], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the stage is gone"):
            connection.generate({"prompt": "a", "size": "16x16", "num_frames": 1})


async def test_a_stage_that_dies_ends_what_waits_for_it() -> None:
    with process("stage") as (pid, port):
        stream = Stream(port)
        payload = first_payload("a")
        assert await stream.work("0" * 32, payload) == noise(digest(payload))
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
    names = ["one", "rate", "cpu", "parts"]
    assert {*names, "tensors", "wan"} == {row.name for row in TOPIC.rows}
    run = subprocess.run(
        [*COMMAND, *names, "--quick", "--rounds", "2", "--json", str(lines)],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    records = {record["row"]: record for record in map(json.loads, lines.read_text().splitlines())}
    assert list(records) == names
    for name, figure in (("one", "p50"), ("rate", "rate"), ("cpu", "server")):
        for one in records[name]["rounds"]:
            ours, least = one["raw"]["triptych"], one["raw"]["floor"]
            assert one["value"] == least[figure] > 0 and records[name]["goal"] is None
            assert one["raw"]["ratio"] == pytest.approx(ours[figure] / least[figure], rel=1e-4)
            assert set(least["cpu"]) == {"server", "encoder", "denoiser", "decoder", "client"}
            assert set(ours["cpu"]) == {"orchestrator", "encoder", "denoiser", "decoder", "client"}
            assert all([*least["cpu"].values(), *ours["cpu"].values()])
    for one in records["cpu"]["rounds"]:
        for system, server in (("floor", "server"), ("triptych", "orchestrator")):
            seen = one["raw"][system]
            assert seen["server"] == seen["cpu"][server] and seen["polls"] >= seen["videos"] == 1
    for one in records["parts"]["rounds"]:
        http, commits, stream, file = (one["raw"][name] for name in ("http", "commits", "stream", "file"))
        more = [one["raw"][name] for name in ("encode", "make", "new", "hash", "copy")]
        parts = (http, commits, stream, file, *more)
        assert all(part["ms"] > 0 and part["cpu"] > 0 for part in parts)
        whole = http["ms"] + commits["ms"] + 3 * stream["ms"] + file["ms"]
        assert one["value"] == one["raw"]["sum"]["ms"] == pytest.approx(whole, rel=1e-4)
    for what in ("an MP4 file", "| tiny requests, 8 clients", "| server's CPU per", "a hash of 42 MB"):
        assert what in run.stdout


def test_both_hand_on_tensors_of_the_same_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the floor there is another, which comes up faster than Triptych."""
    models = []

    @contextlib.contextmanager
    def running(model: str) -> Iterator[SimpleNamespace]:
        models.append(model)
        with floor(tensors=Work(80_000, 400_000)) as ground:
            found = [SimpleNamespace(name=f"{name} 0", pid=pid) for name, pid in ground.pids.items()]
            yield SimpleNamespace(port=ground.port, processes=found)

    monkeypatch.setattr(beside, "running", running)
    first, second = large.measure(80_000, 400_000)(Effort(rounds=2, quick=True))
    assert models == ["emulated:embeddings=80000,latents=400000"]
    for one in (first, second):
        least, other = one.raw["floor"], one.raw["triptych"]
        assert one.value == least["p50"] and one.raw["ratio"] == other["p50"] / least["p50"]
        assert least["requests"] == other["requests"] == 3
        assert all([*least["cpu"].values(), *other["cpu"].values()])


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
