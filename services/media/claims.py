"""Claims: small locked files by which a media file outlives the process that wrote it, or goes with it."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import threading
import time
from pathlib import Path
from typing import Literal

import xxhash
from google.protobuf import json_format

from services.media.files import MediaError, part_path, sync_folder
from services.media.formats import is_file_name
from triptych_proto.control_pb2 import Done, MediaFile

log = logging.getLogger(__name__)

SUFFIX = ".claim"
TAKEN_SECONDS = 1.0  # recover() in another process may have a new claim in its hands for a moment
FORGOTTEN_SECONDS = 24 * 3600.0  # after which a partial file that has no claim is nobody's
MAX_RECORD_BYTES = 64 * 1024
MAX_RECOVERED = 256  # each is an open file


class Claim:
    """Says that a media file is still its writer's: made, or made and not yet accepted.

    ``<name>.claim`` lies beside the file from before its first byte until ``accept`` or ``discard``.
    The living owner holds an exclusive flock on it, so one whose lock is free belongs to a dead process.
    It is empty while the file is being written; then it holds the result, with a checksum in front: what a
    crash has torn counts as empty. Safe to settle from any thread, and more than once: the first counts.
    """

    def __init__(self, path: Path, task_id: str, lock: io.FileIO, file: MediaFile | None = None) -> None:
        self.path = path  # of the media file
        self.task_id = task_id
        self.file = file  # the result, once there is one
        self._lock = lock
        self._settling = threading.Lock()

    @staticmethod
    def open(path: Path, task_id: str) -> Claim:
        """Claims the media file ``path``, which nobody has written yet.

        MediaError when the claim cannot be made or locked, or when the file or another claim is there.
        """
        claim = claim_path(path)
        deadline = time.monotonic() + TAKEN_SECONDS
        while True:
            try:
                lock = _locked(claim, "x+")
            except FileExistsError:
                lock = None
            except OSError as error:
                raise MediaError(f"{claim}: {error}") from error
            if lock is not None:
                break
            if time.monotonic() > deadline:
                raise MediaError(f"{claim}: another task has this claim")
            time.sleep(0.01)
        if path.exists():
            Claim(path, task_id, lock).accept()
            raise MediaError(f"{path}: there is such a file already")
        return Claim(path, task_id, lock)

    def finish(self, file: MediaFile) -> None:
        """Records the result, which lies whole at ``path``: from now on it outlives this process.

        On return it is on the disk, and so is the media file's name. MediaError when it cannot be written;
        then only ``discard`` is left.
        """
        text = json_format.MessageToJson(Done(task_id=self.task_id, file=file), indent=None).encode()
        record = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text
        try:
            while record:
                record = record[os.write(self._lock.fileno(), record) :]
            # In this order a file system with a journal has little left to do for the folder.
            os.fsync(self._lock.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            raise MediaError(f"{claim_path(self.path)}: {error}") from error
        self.file = file

    def accept(self) -> None:
        """The result is recorded elsewhere: the claim goes, the file stays."""
        self._settle(claim_path(self.path))

    def discard(self) -> None:
        """Nobody wants the result: the file goes, whole or in part, and then the claim."""
        self._settle(part_path(self.path), self.path, claim_path(self.path))

    def leave(self) -> None:
        """Lets everything lie for the next ``recover``, as the end of this process does."""
        self._settle()

    def _settle(self, *unwanted: Path) -> None:
        """Never raises: what cannot be removed now keeps its claim, and is met again by ``recover``."""
        with self._settling:
            if self._lock.closed:
                return
            try:
                with self._lock:
                    for path in unwanted:
                        path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: cannot be settled yet: %s", claim_path(self.path), error)


def recover(directory: Path) -> list[Claim]:
    """Takes the claims of dead processes; returns those with a result, which are the caller's to settle.

    Of the others nothing is left afterwards. Claims of living processes are not touched, and of several
    processes that recover at once each claim goes to one. What fails is logged and left where it is.
    """
    found: list[Claim] = []
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        log.warning("%s: cannot look for unfinished files: %s", directory, error)
        return found
    for name in names:
        try:
            media, dot, end = name.rpartition(".")
            if not is_file_name(media):
                continue
            if dot + end == SUFFIX:
                claim = _take(directory / name)
                found += [claim] if claim is not None else []
            elif end == "part":
                _remove_forgotten(directory / name)
        except FileNotFoundError:
            continue  # settled by its owner since it was listed
        except (OSError, json_format.ParseError) as error:
            log.warning("%s: cannot be recovered: %s", directory / name, error)
        if len(found) == MAX_RECOVERED:
            log.warning("%s: %d results recovered, the rest is left for later", directory, MAX_RECOVERED)
            break
    return found


def claim_path(path: Path) -> Path:
    """The claim on the media file ``path``."""
    return path.with_name(path.name + SUFFIX)


def _take(claim: Path) -> Claim | None:
    """The claim with its result if its owner is dead; one without a result is removed."""
    lock = _locked(claim, "r+")
    if lock is None:
        return None
    path = claim.with_suffix("")
    try:
        done = _result(lock, path)
    except BaseException:
        lock.close()
        raise
    if done is not None:
        return Claim(path, done.task_id, lock, done.file)
    log.info("%s: its writer died; what is left of it is removed", path)
    Claim(path, "", lock).discard()
    return None


def _result(lock: io.FileIO, path: Path) -> Done | None:
    """What the claim says of its media file; None if it says nothing, or if the file is not like that."""
    digest, _, text = lock.read(MAX_RECORD_BYTES).partition(b" ")
    if digest != xxhash.xxh3_64_hexdigest(text).encode():
        return None
    done = json_format.Parse(text, Done(), ignore_unknown_fields=True)
    try:
        whole = path.stat().st_size == done.file.bytes
    except FileNotFoundError:
        return None
    return done if whole and done.file.name == path.name else None


def _locked(path: Path, mode: Literal["x+", "r+"]) -> io.FileIO | None:
    """``path``, open and locked; None if another process has the lock, or has removed the file meanwhile."""
    file = io.FileIO(path, mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock on a file that was removed, or made anew, between open and flock protects nothing.
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        file.close()
        if mode == "x+":
            path.unlink(missing_ok=True)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise OSError(error.errno, "this file system has no locks, which media files need") from error
        raise
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _remove_forgotten(part: Path) -> None:
    """Earlier releases had no claims: a partial file without one is removed when it is surely dead."""
    claimed = claim_path(part.with_suffix("")).exists()
    if not claimed and time.time() - part.stat().st_mtime > FORGOTTEN_SECONDS:
        log.info("%s: forgotten by its writer, removed", part)
        part.unlink()
