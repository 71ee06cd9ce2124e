"""A process that tests drive by lines of JSON: one line in is a command, one line out its answer."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


class Driven:
    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def do(self, *command: Any) -> Any:
        self.ask(*command)
        return self.read()

    def ask(self, *command: Any) -> None:
        """Gives a command whose answer is read later."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"process {self.pid} has died"
        return json.loads(line)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # returns when it has stopped

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)
