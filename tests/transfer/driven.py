"""A process that tests drive by lines of JSON: one line in is a command, one line out its answer."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

FREEZE_SECONDS = 10.0

# Forks of one process that has imported it all: to import torch takes longer than most tests.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.transfer.producer", "tests.transfer.node", "tests.transfer.greedy"])


class Driven:
    """``module``'s ``main(*words)`` in a process of its own; if there is a command ``on``, it starts it."""

    def __init__(self, module: str, words: Sequence[str], on: Sequence[str] = ()) -> None:
        self._process: subprocess.Popen[str] | multiprocessing.process.BaseProcess
        self._input: TextIO
        self._output: TextIO
        if on:
            command = [*on, sys.executable, "-m", module, *words]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert self._process.stdin and self._process.stdout
            self._input, self._output = self._process.stdin, self._process.stdout
        else:
            (theirs_in, ours_in), (ours_out, theirs_out) = _forks.Pipe(False), _forks.Pipe(False)
            with theirs_in, ours_in, ours_out, theirs_out:
                self._process = _forks.Process(
                    target=_run, args=(module, words, theirs_in, theirs_out), daemon=True
                )
                self._process.start()
                self._input = os.fdopen(os.dup(ours_in.fileno()), "w")
                self._output = os.fdopen(os.dup(ours_out.fileno()), "r")
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def do(self, *command: Any) -> Any:
        self.ask(*command)
        return self.read()

    def ask(self, *command: Any) -> None:
        """Gives a command whose answer is read later."""
        self._input.write(json.dumps(command) + "\n")
        self._input.flush()

    def read(self) -> Any:
        line = self._output.readline()
        assert line, f"process {self.pid} has died"
        return json.loads(line)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + FREEZE_SECONDS
        while not all(state == "T" for state in _states(self.pid)):
            assert time.monotonic() < deadline, f"process {self.pid} did not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Returns when it is gone. Can be repeated."""
        self._process.kill()
        if isinstance(self._process, subprocess.Popen):
            self._process.wait()
        else:
            self._process.join()
        self._input.close()
        self._output.close()


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _run(module: str, words: Sequence[str], stdin: Connection, stdout: Connection) -> None:
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    stdin.close()
    stdout.close()
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    importlib.import_module(module).main(*words)


def _states(pid: int) -> list[str]:
    """Of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
