"""``triptych ctl`` against the HTTP API on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import test_utils

import triptych
from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Status
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MODEL, MemoryService, attempt, peer

URL = "grpc://127.0.0.1:1"
TOKEN = "s3cret-t0ken-of-a-cluster"


class System:
    """A server and the command that talks to it."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], conformance: Conformance, token: str | None = None
    ) -> None:
        self.service = MemoryService()
        app = conformance.watch(create_app(self.service, HttpOptions(cluster_token=token)))
        self.server = test_utils.TestServer(app)
        self._capsys = capsys

    async def ctl(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        server = str(self.server.make_url("/"))
        code = await asyncio.to_thread(triptych.main, ["ctl", "--server", server, *words])
        return (code, *self._capsys.readouterr())

    async def looked_at(self, times: int = 1) -> None:
        """Returns when the server was asked for something that often from now on."""
        wanted, deadline = self.service.lookups + times, time.monotonic() + 20
        while self.service.lookups < wanted:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


@pytest.fixture
async def system(capsys: pytest.CaptureFixture[str], conformance: Conformance) -> AsyncIterator[System]:
    system = System(capsys, conformance)
    async with system.server:
        yield system


@pytest.fixture
async def guarded(capsys: pytest.CaptureFixture[str], conformance: Conformance) -> AsyncIterator[System]:
    system = System(capsys, conformance, TOKEN)
    async with system.server:
        yield system


def token_file(path: Path, token: str) -> str:
    path.write_text(token + "\n")
    path.chmod(0o600)
    return str(path)


async def test_peers(system: System) -> None:
    peers = system.service.peers
    peers["grpc://b:2"] = {"url": "grpc://b:2", "role": "decoder", "state": "refused", "refusal": "it is old"}
    peers["grpc://c:3"] = {"url": "grpc://c:3", "role": "denoiser", "state": "connecting"}
    code, out, err = await system.ctl("peers")
    assert (code, err) == (0, "")
    header, first, refused, absent = (re.split(r" {2,}", line) for line in out.splitlines())
    assert header == ["url", "role", "state", "running", "queued", "pools", "model"]
    assert first[:3] == [URL, "encoder", "ready"]
    assert first[3:] == ["1", "2", "outbox 48 MiB/64 MiB, inbox 1.5 GiB/1.5 GiB", MODEL.name]
    assert refused == ["grpc://b:2", "decoder", "refused", "it is old"]
    assert absent == ["grpc://c:3", "denoiser", "connecting"]
    peers.clear()
    assert (await system.ctl("peers"))[1].split() == header


async def test_raw_replies(system: System) -> None:
    job = system.service.add()
    system.service.complete(job)
    for before, after in ((["--json"], []), ([], ["--json"])):
        reply = json.loads((await system.ctl(*before, "peers", *after))[1])
        assert reply == {"object": "list", "data": list(system.service.peers.values())}
        reply = json.loads((await system.ctl(*before, "timeline", job.id, *after))[1])
        assert reply["object"] == "video.timeline" and len(reply["attempts"]) == 4
    reply = json.loads((await system.ctl("drain", URL, "--json"))[1])
    assert (reply["url"], reply["state"]) == (URL, "draining")
    assert json.loads((await system.ctl("delete", job.id, "--json"))[1])["deleted"] is True


async def test_drain_does_not_wait_unless_asked(system: System) -> None:
    code, out, err = await system.ctl("drain", f"{URL}/")
    assert (code, out, err) == (0, f"{URL} takes no new task\n", "")
    assert system.service.peers[URL]["state"] == "draining"


async def test_drain_waits_until_the_peer_is_empty(system: System) -> None:
    entry = system.service.peers[URL]
    waiting = asyncio.create_task(system.ctl("drain", URL, "--wait", "30"))
    await system.looked_at(2)  # drain itself looks once
    entry["running"] = 0
    await system.looked_at(2)
    assert not waiting.done()  # a slot is in use still
    entry["pools"] = []
    assert (await waiting)[0] == 0


@pytest.mark.parametrize("how", ["removed", "disconnected", "restarted"])
async def test_drain_waits_until_the_peer_is_gone(system: System, how: str) -> None:
    waiting = asyncio.create_task(system.ctl("drain", URL, "--wait", "30"))
    await system.looked_at(2)
    assert not waiting.done()
    if how == "removed":
        del system.service.peers[URL]
    elif how == "disconnected":
        system.service.peers[URL] = {"url": URL, "role": "encoder", "state": "connecting"}
    else:
        system.service.peers[URL] = {**peer(URL, "encoder"), "incarnation": "22bb"}
    assert (await waiting)[0] == 0


async def test_drain_outlives_errors_of_the_server(system: System) -> None:
    waiting = asyncio.create_task(system.ctl("drain", URL, "--wait", "30"))
    await system.looked_at(2)
    peers, system.service.peers = system.service.peers, None  # type: ignore[assignment]
    await system.looked_at(2)
    assert not waiting.done()
    system.service.peers = peers
    del peers[URL]
    assert (await waiting)[0] == 0


async def test_a_wait_in_vain(system: System) -> None:
    code, _, err = await system.ctl("drain", URL, "--wait", "0.1")
    assert code == 1
    assert err == (f"triptych ctl: {URL} was not empty within 0.1 s: draining, 1 running, 1 slots in use\n")


async def test_timeline(system: System) -> None:
    job = system.service.add()
    system.service.complete(job)
    job.completed_at = job.created_at + 8
    code, out, err = await system.ctl("timeline", job.id)
    assert (code, err) == (0, "")
    title, header, *lines = out.splitlines()
    assert title == f"{job.id} is completed, 8.000 s"
    assert header.split() == [
        *("stage", "try", "outcome", "queue", "wait", "transfer", "compute", "save", "instance")
    ]
    rows = [re.fullmatch(r"(.*?) +\|(.*)\|  (.*)", line) for line in lines]
    cells = [row[1].split() for row in rows if row]
    assert cells == [
        ["encode", "1", "done", "0.500", "0.000", "0.000", "0.500", "0.000"],
        ["denoise", "1", "lost", "0.500", "0.000", "0.250", "0.000", "0.000"],
        ["denoise", "2", "done", "0.500", "0.000", "0.250", "2.000", "0.000"],
        ["decode", "1", "done", "0.500", "0.000", "0.500", "1.000", "0.250"],
    ]
    # 32 characters for 8 seconds: half a second in the queue, then one second of running.
    assert [row[2] for row in rows if row] == [f"{' ' * start}..####".ljust(32) for start in (0, 4, 8, 20)]
    assert [row[3] for row in rows if row] == ["a:1", "b:2  gone", "c:3", "d:4"]


async def test_the_timeline_of_a_job_that_runs(system: System) -> None:
    job = system.service.add()
    assert (await system.ctl("timeline", job.id))[1].startswith(f"{job.id} is queued, 0.000 s\nstage")
    job.status = Status.IN_PROGRESS
    job.attempts = [
        attempt("encode", "a:1", job.created_at),
        attempt("denoise", "b:2", job.created_at + 7.5, inputs_at=None, ended_at=None, outcome="running"),
    ]
    _, out, _ = await system.ctl("timeline", job.id)
    assert f"{job.id} is in_progress, 8.000 s" in out
    assert out.splitlines()[-1].split("|")[1] == ".#".rjust(32)


async def test_delete(system: System) -> None:
    job = system.service.add()
    assert await system.ctl("delete", job.id) == (0, f"{job.id} is deleted\n", "")
    assert not system.service.table


async def test_what_the_server_refuses(system: System, guarded: System, tmp_path: Path) -> None:
    for words in (("timeline", "none"), ("delete", "none")):
        code, out, err = await system.ctl(*words)
        assert (code, out, err) == (1, "", "triptych ctl: there is no video 'none'\n")
    code, _, err = await system.ctl("drain", "grpc://127.0.0.1:2")
    assert (code, err) == (1, "triptych ctl: no peer is connected at grpc://127.0.0.1:2\n")
    code, _, err = await system.ctl("drain", "127.0.0.1:2")
    assert code == 1 and "expected grpc://host:port" in err
    for words in ((), ("--token-file", token_file(tmp_path / "wrong", "not-the-t0ken-of-it"))):
        code, out, err = await guarded.ctl("drain", URL, *words)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert "token" in err


async def test_the_token(guarded: System, tmp_path: Path) -> None:
    path = token_file(tmp_path / "token", TOKEN)
    assert (await guarded.ctl("--token-file", path, "drain", URL))[0] == 0
    assert (await guarded.ctl("drain", "--token-file", path, URL))[0] == 0


async def test_what_cannot_be_asked(system: System, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{test_utils.unused_port()}"
    for server, expected in (
        (nowhere, f"cannot reach {nowhere}"),
        ("ftp://a", "ftp://a/v1 is not of the form"),
        ("nonsense", "nonsense/v1 is not of the form"),
    ):
        code, out, err = await system.ctl("peers", "--server", server)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"triptych ctl: {expected}")
    for path in (tmp_path / "none", tmp_path):
        code, _, err = await system.ctl("peers", "--token-file", str(path))
        assert (code, len(err.splitlines())) == (2, 1)
        assert str(path) in err


async def test_as_a_process(system: System) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "triptych", "ctl", "peers", "--server", str(system.server.make_url("/v1"))),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err) == (0, b"")
    assert URL.encode() in out
