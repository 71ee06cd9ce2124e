"""Media files in a store that fsspec reaches: written to a spool folder of this host, then copied whole."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from services.media.claims import Claim
from services.media.files import MediaError
from services.media.formats import Format
from services.media.store import LocalStore
from transfer.remote_folder import RemoteError, RemoteFolder
from triptych_proto.control_pb2 import MediaFile

if TYPE_CHECKING:
    from services.model.base import Control

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.25  # between two tries of an upload; each is twice as long as the one before
LONGEST_PAUSE_SECONDS = 5.0
LOOK_SECONDS = 0.1  # between two looks at whether the upload is still wanted


class RemoteStore:
    """Implements ``services.media.store.Store``.

    The claim says that the file lies whole in the spool folder, and nothing of the store: after a crash the
    file is copied again, under the same name. Only ``accept`` and ``discard`` remove the spool's copy.
    """

    remote = True

    def __init__(self, spool: Path, folder: RemoteFolder, retry_seconds: float) -> None:
        """``retry_seconds`` is how long an upload is tried again. OSError if ``spool`` cannot be made."""
        self._spool = LocalStore(spool)
        self._folder = folder
        self._retry_seconds = retry_seconds
        self._begun: set[str] = set()  # names that the store may have

    def claim(self, task_id: str, format: Format) -> Claim:
        return self._spool.claim(task_id, format)

    def keep(self, claim: Claim, file: MediaFile) -> MediaFile:
        return self._spool.keep(claim, file)

    def deliver(self, claim: Claim, file: MediaFile, control: Control) -> None:
        self._begun.add(claim.path.name)
        started = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        while True:
            control.raise_if_cancelled()
            try:
                self._folder.put(claim.path, claim.path.name)
                break
            except RemoteError as error:
                left = started + self._retry_seconds - time.monotonic()
                if error.lasting or left <= pause:
                    raise MediaError(str(error)) from error
                log.warning("%s; trying again for %.0f s", error, left)
            _pause(pause, control)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        file.store = self._folder.url

    def accept(self, claim: Claim) -> None:
        self._begun.discard(claim.path.name)
        claim.discard()  # of the spool's copy: the store has the file

    def discard(self, claim: Claim) -> None:
        if claim.path.name in self._begun:
            try:
                self._folder.remove(claim.path.name)
            except RemoteError as error:
                log.warning("%s; left to the orchestrator's sweep", error)
            self._begun.discard(claim.path.name)
        claim.discard()

    def recover(self) -> list[Claim]:
        claims = self._spool.recover()
        self._begun |= {claim.path.name for claim in claims}  # by the dead process, perhaps
        return claims


def _pause(seconds: float, control: Control) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        control.raise_if_cancelled()
        time.sleep(min(left, LOOK_SECONDS))
