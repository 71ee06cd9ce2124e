"""Where finished files lie, as the sweep sees it: a folder of this host, or one in a store."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from transfer.remote_folder import Entry, NoSuchFile, RemoteFolder

MARKER = ".triptych-owner"  # holds the identity of the job store whose files these are
MAX_MARKER_BYTES = 256


class Place(Protocol):
    """A folder of media files. Every call blocks, and may raise OSError or RemoteError."""

    store: str  # as in MediaFile

    def owner(self) -> str:
        """The identity of the job store it belongs to; empty if it has none yet."""
        ...

    def claim(self, owner: str) -> None:
        """Gives it an owner. Another one may have been quicker: ask again."""

    def entries(self) -> Iterable[Entry]: ...

    def remove(self, name: str, entries: Sequence[str]) -> bool:
        """The media file ``name``, of which there are these ``entries``; False if somebody works on it."""
        ...


class LocalPlace:
    """A folder of this host. Beside a file that is not accepted yet lies its ``.claim``, locked by the
    decoder that writes it as long as that lives.
    """

    store = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return str(self._folder)

    def owner(self) -> str:
        try:
            return (self._folder / MARKER).read_text()[:MAX_MARKER_BYTES].strip()
        except FileNotFoundError:
            return ""

    def claim(self, owner: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), (self._folder / MARKER).open("x") as file:
            file.write(f"{owner}\n")

    def entries(self) -> Iterable[Entry]:
        found = []
        with suppress(FileNotFoundError), os.scandir(self._folder) as folder:
            for entry in folder:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        found.append(Entry(entry.name, entry.stat(follow_symlinks=False).st_mtime))
        return found

    def remove(self, name: str, entries: Sequence[str]) -> bool:
        claim = self._folder / f"{name}.claim"
        try:
            lock = claim.open("r+b")
        except FileNotFoundError:
            self._unlink(entries)
            return True
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._unlink([*entries, claim.name])  # the claim last: while it is there, so is its owner's word
        return True

    def _unlink(self, names: Sequence[str]) -> None:
        for name in sorted(names, key=lambda name: name.endswith(".claim")):
            (self._folder / name).unlink(missing_ok=True)


class RemotePlace:
    """A folder in a store. What lies there was whole before it came."""

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        self.store = folder.url

    def __repr__(self) -> str:
        return self.store

    def owner(self) -> str:
        try:
            return self._folder.read(MARKER).decode(errors="replace")[:MAX_MARKER_BYTES].strip()
        except NoSuchFile:
            return ""

    def claim(self, owner: str) -> None:
        self._folder.write(MARKER, f"{owner}\n".encode())

    def entries(self) -> Iterable[Entry]:
        return self._folder.entries()

    def remove(self, name: str, entries: Sequence[str]) -> bool:
        for entry in entries:
            self._folder.remove(entry)
        return True
