"""A PostgreSQL server of the tests' own, from Debian's binaries, reached through a socket in its folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

READY_SECONDS = 60
STOP_SECONDS = 30


def binaries() -> Path | None:
    """The folder of the newest server installed, if there is one."""
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(folders, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


class PostgresServer:
    """``start`` to ``stop``: one life of a fresh cluster."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # Not in pytest's folder: others may not enter that, and the server refuses to run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="triptych-pg-"))
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    def start(self) -> None:
        data = self._folder / "data"
        words = [self._binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run(
            [*words, "--no-locale", "--no-sync"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
            check=False,
            **self._as_user,
        )
        assert made.returncode == 0, made.stderr
        settings = {"listen_addresses": "", "fsync": "off", "unix_socket_directories": self._folder}
        words = [self._binaries / "postgres", "-D", data]
        words += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(words, cwd=self._folder, stdout=log, stderr=log, **self._as_user)
        deadline = time.monotonic() + READY_SECONDS
        ready = [self._binaries / "pg_isready", "-q", "-h", self._folder]
        while subprocess.run(ready, timeout=READY_SECONDS, check=False).returncode != 0:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        try:
            if self._process is not None:
                self._process.send_signal(signal.SIGINT)  # disconnects clients
                self._process.wait(STOP_SECONDS)
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        with psycopg.connect(host=str(self._folder), user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://postgres@/{name}?host={self._folder}"
