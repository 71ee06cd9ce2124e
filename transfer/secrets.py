"""Secret files: never read when strangers could, never written where they could."""

import os
import re
import secrets
import stat
from pathlib import Path

MIN_TOKEN_CHARS = 16
MAX_TOKEN_CHARS = 1024
_TOKEN = re.compile(rb"[\x21-\x7e]{%d,%d}" % (MIN_TOKEN_CHARS, MAX_TOKEN_CHARS))
# Not for strangers, and for nobody else to change. Groups may read: that is how an orchestrator of
# containers gives a secret to a process that is not root.
_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP


def read_secret(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of the file. Raises OSError; PermissionError if others may read or change it."""
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(limit)
    if mode & _FORBIDDEN:
        raise PermissionError(f"{path}: mode {mode:04o} is open to others, expected 0600 or 0640")
    return content


def write_secret(path: Path, content: bytes) -> None:
    """Writes a new file that only its owner can read; raises FileExistsError rather than replace one."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)


def read_token(path: Path) -> str:
    """The token in a file, which is all that the file holds.

    Raises OSError or ValueError that names the file and what is wrong.
    """
    content = read_secret(path, MAX_TOKEN_CHARS + 16).strip()
    if not _TOKEN.fullmatch(content):
        expected = f"one word of {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} printable ASCII characters"
        raise ValueError(f"{path}: expected {expected}, found {len(content)} bytes that are not")
    return content.decode()


def write_token(path: Path) -> None:
    """Writes a new token of 32 random bytes; raises as `write_secret` does."""
    write_secret(path, secrets.token_urlsafe(32).encode() + b"\n")
