"""That what a run must not leave behind would be found."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests import remains
from transfer.arena import Arena, map_readonly

INCARNATION = "0123456789abcdef"


def test_processes_are_found_by_session_and_by_words(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        leaders = {leader.pid: remains.started(leader.pid)}
        assert len(remains.processes(leaders, [])) == 2
        assert len(remains.processes({}, [str(tmp_path)])) == 1
        assert remains.processes({leader.pid: "1"}, []) == [], "an earlier process had this number"
        assert leader.stdin is not None
        leader.stdin.close()
        leader.wait()
    (orphan,) = remains.processes(leaders, [])
    assert orphan.startswith(f"process {child}: sleep")
    os.kill(child, signal.SIGKILL)


def test_signals_that_are_handled_and_pending() -> None:
    code = "import signal; signal.signal(15, lambda *_: None); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert remains.handles(process.pid, signal.SIGTERM)
            assert not remains.handles(process.pid, signal.SIGUSR1)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(
                process.pid, os.WUNTRACED
            )  # until it has stopped: signals travel in no time, not in none
            process.send_signal(signal.SIGTERM)
            assert remains.pending(process.pid, signal.SIGTERM)
        finally:
            process.kill()


def test_sockets_by_incarnation() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0triptych-{INCARNATION}")
        listener.listen()
        assert remains.sockets({INCARNATION, "f" * 16}) == [INCARNATION]
    assert remains.sockets({INCARNATION}) == []


def test_memory_of_the_dead() -> None:
    others = remains.dead_memory({os.getpid()})  # of this very process: libraries have semaphores
    arena = Arena("outbox", 4096)
    mapped = map_readonly(arena.fd, arena.nbytes)
    assert remains.dead_memory({os.getpid()}) == others, "its owner is among them"
    arena.close()
    assert len(remains.dead_memory({os.getpid()})) == len(others) + 1
    del mapped
    assert remains.dead_memory({os.getpid()}) == others


def test_files_that_should_not_be_there_or_are_not(tmp_path: Path) -> None:
    for name in (
        "a-decode-1.mp4",
        "b-decode-1.mp4",
        "b-decode-2.mp4",
        "c-1.mp4.part",
        "d-decode-1.mp4",
    ):
        (tmp_path / name).touch()
    assert remains.files(tmp_path, {"a", "b", "e"}) == [
        "c-1.mp4.part is there", "2 files of b", "1 files of d", "no file of e",
    ]  # fmt: skip
