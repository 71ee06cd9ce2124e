"""What an engine is: it lets peers read the slots of a pool, and reads the slots of peers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from transfer.errors import TransferError
from transfer.pool import Pool, SlotLocation
from transfer.urls import EndpointURL


@dataclass(frozen=True)
class EngineAddress:
    """How a process's slots are read by one engine; an empty `scope` means from anywhere."""

    engine: str
    address: str
    scope: str


@dataclass(frozen=True)
class Source:
    """One slot of one life of one peer, as an engine finds it."""

    url: EndpointURL
    incarnation: str
    address: str
    location: SlotLocation

    def check(self, header: bytes) -> None:
        """Compares the 64 bytes found before the payload with the location; raises SlotGone or Corrupt."""
        try:
            self.location.header.check(header)
        except TransferError as error:
            raise type(error)(f"{self}: {error}") from None

    def __str__(self) -> str:
        return f"{self.url} {self.location.arena}+{self.location.offset}"


class Engine(Protocol):
    """A way for bytes to get from a producer's slot into a consumer's."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str:
        """What peers need to reach this process; known once started."""

    @property
    def checks_payload(self) -> bool:
        """Whether readers compare the payload with its checksum; else nobody needs to take one."""

    @property
    def scope(self) -> str:
        """Empty, or the scope outside of which the address means nothing."""

    def start(self, pools: Mapping[str, Pool]) -> None:
        """Lets peers read what is published in `pools`, by arena name. Raises OSError if it cannot."""

    def read(self, source: Source, into: memoryview, deadline: float) -> None:
        """Fills `into`, of exactly the payload's length, with the verified payload of a peer's slot.

        Blocks; called from many threads at once. Returns or raises a TransferError by `deadline` (on
        the clock of `time.monotonic`), and from then on nothing writes to `into` any more.
        """

    def close(self) -> None:
        """Stops serving and makes reads under way fail. Blocks until its threads have ended."""
