"""Where media files go: what a stage asks of a store, and the store that is a folder of this host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from services.media.claims import Claim, recover
from services.media.formats import Format, file_name, is_file_name
from triptych_proto.control_pb2 import MediaFile

if TYPE_CHECKING:
    from services.model.base import Control  # imports torch: --help need not wait for it


class Store(Protocol):
    """Takes a decoder's files. ``accept`` and ``discard`` never raise and can be repeated."""

    remote: bool  # a kept file is still to be delivered

    def claim(self, task_id: str, format: Format) -> Claim:
        """Makes room: the file is to be written at the claim's ``path``. MediaError when it cannot."""
        ...

    def keep(self, claim: Claim, file: MediaFile) -> MediaFile:
        """The file lies whole at the claim's ``path``: records the result, with what was added to ``file``.
        From then on it outlives this process. Raises MediaError.
        """
        ...

    def deliver(self, claim: Claim, file: MediaFile, control: Control) -> None:
        """Brings a kept file where it can be read, and says in ``file`` where. Takes its time, and is called
        on threads of its own. Can be repeated. Raises MediaError, and Cancelled when ``control`` does.
        """

    def accept(self, claim: Claim) -> None:
        """The result is recorded elsewhere."""

    def discard(self, claim: Claim) -> None:
        """Nobody wants the file, whole or in part."""

    def recover(self) -> list[Claim]:
        """Results of dead processes. Reads the disk; before any work."""
        ...


class LocalStore:
    """A folder: files stay in it, or, with ``hand_over``, until an orchestrator has copied them."""

    remote = False

    def __init__(self, directory: Path, hand_over: bool = False) -> None:
        self.directory = directory
        self._hand_over = hand_over
        directory.mkdir(parents=True, exist_ok=True)

    def claim(self, task_id: str, format: Format) -> Claim:
        return Claim.open(media_path(self.directory, file_name(task_id, format)), task_id)

    def keep(self, claim: Claim, file: MediaFile) -> MediaFile:
        file.hand_over = self._hand_over
        claim.finish(file)
        return file

    def deliver(self, claim: Claim, file: MediaFile, control: Control) -> None:
        """It is there."""

    def accept(self, claim: Claim) -> None:
        if claim.file is not None and claim.file.hand_over:
            claim.discard()  # the orchestrator has the bytes
        else:
            claim.accept()

    def discard(self, claim: Claim) -> None:
        claim.discard()

    def recover(self) -> list[Claim]:
        return recover(self.directory)


def media_path(directory: Path, name: str) -> Path:
    """The file ``name`` in ``directory``; ValueError if it is not a plain name."""
    if not is_file_name(name):
        raise ValueError(f"{name[:64]!r} is not the name of a media file")
    return directory / name
