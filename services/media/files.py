"""Files that take their name when their bytes are on the disk."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path


class MediaError(Exception):
    """A media file could not be written; names the file."""


class PartFile:
    """``<path>.part``, which ``publish`` renames to ``path``: that is whole or not there."""

    def __init__(self, path: Path) -> None:
        """MediaError when the file cannot be made."""
        self.path = path
        self.part = part_path(path)
        try:
            # This descriptor also hears of what goes wrong when the system writes back later, which one
            # opened afterwards may not.
            self.file = self.part.open("wb")
        except OSError as error:
            raise MediaError(f"{path}: {error}") from error

    def publish(self) -> int:
        """The size in bytes of what is now at ``path``. MediaError if it cannot; then nothing is left.

        Its name is on the disk after ``sync_folder``.
        """
        try:
            with self.file:
                self.file.flush()
                os.fsync(self.file.fileno())
                size = os.fstat(self.file.fileno()).st_size
            os.replace(self.part, self.path)
        except OSError as error:
            self.discard()
            raise MediaError(f"{self.path}: {error}") from error
        return size

    def discard(self) -> None:
        """MediaError when it cannot be removed."""
        try:
            with closing(self.file):
                self.part.unlink(missing_ok=True)
        except OSError as error:
            raise MediaError(f"{self.part}: {error}") from error


def part_path(path: Path) -> Path:
    """Where ``path`` lies until it is whole."""
    return path.with_name(path.name + ".part")


def sync_folder(path: Path) -> None:
    """Forces the names in a folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
