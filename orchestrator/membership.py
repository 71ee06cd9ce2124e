"""Who belongs to the cluster: endpoints listed, found behind a DNS name, or announced by themselves."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.background import end
from orchestrator.peers import Peer, Peers
from transfer.urls import DEFAULT_PORT, EndpointURL

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0  # between two look-ups of a name
LOOKUP_SECONDS = 5.0
ANNOUNCED_SECONDS = 60.0  # a role that announced itself and is gone is remembered for so long
MAX_ANNOUNCED = 1024

_NAME_URL = re.compile(r"dns://([A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?/?")


@dataclass(frozen=True)
class NamedPeers:
    """All addresses behind one DNS name, as of a headless service: ``dns://NAME:PORT``."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> NamedPeers:
        """Raises ValueError that quotes the text."""
        match = _NAME_URL.fullmatch(text.strip())
        if match is None or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
            raise ValueError(f"DNS name {text!r}: expected dns://NAME:PORT")
        return NamedPeers(match[1].lower(), int(match[2] or DEFAULT_PORT))

    def __str__(self) -> str:
        return f"dns://{self.host}:{self.port}"

    async def resolve(self) -> set[EndpointURL]:
        """Raises OSError when the name has no address now, or nobody answers."""
        lookup = asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(lookup, LOOKUP_SECONDS)
        except asyncio.TimeoutError:
            raise OSError(f"no answer within {LOOKUP_SECONDS:g} s") from None
        return {EndpointURL(str(address[0]).partition("%")[0], self.port) for *_, address in found}


@dataclass
class _Member:
    role: str
    source: str  # "listed", "announced", or the DNS name
    seen: float = 0.0  # when it was last announced or found (monotonic)


class Membership:
    """Keeps the peer table as its sources say. A peer that has left them goes once its stream has ended:
    a draining role is out of DNS long before it is done.
    """

    def __init__(
        self,
        peers: Peers,
        dial: Callable[[EndpointURL, str], Peer],
        listed: Sequence[tuple[EndpointURL, str]],
        named: Sequence[tuple[NamedPeers, str]],
    ) -> None:
        """The second of each pair is the kind of role. Raises ValueError for an endpoint listed twice."""
        self._peers = peers
        self._dial = dial
        self._members: dict[EndpointURL, _Member] = {}
        self._listed, self._named = listed, named
        self._failing: set[NamedPeers] = set()
        self._refreshing: asyncio.Task[None] | None = None

    def start(self) -> None:
        for url, role in self._listed:
            self._join(url, role, "listed")
        self._refreshing = asyncio.create_task(self._refresh_for_ever(), name="membership")

    async def close(self) -> None:
        if self._refreshing is not None:
            await end([self._refreshing])
        await self._peers.close()

    async def settled(self, seconds: float) -> None:
        """Returns when every peer known now has been reached, or could not be, or ``seconds`` are over."""
        waits = [asyncio.create_task(peer.settled.wait()) for peer in self._peers.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()

    def announce(self, url: EndpointURL, role: str) -> str:
        """A role says that it is there; returns why it is not welcome, or nothing. To be repeated."""
        known = self._members.get(url)
        if known is not None and known.role != role:
            return f"{url} is known as {known.role}, not {role}"
        if known is None:
            announced = sum(member.source == "announced" for member in self._members.values())
            if announced >= MAX_ANNOUNCED:
                return f"{MAX_ANNOUNCED} roles have announced themselves already"
            self._join(url, role, "announced")
        self._members[url].seen = time.monotonic()
        return ""

    async def refresh(self) -> None:
        """Looks up the names, takes in who is new, and lets go of who is gone."""
        for name, role in self._named:
            try:
                urls = await name.resolve()
            except OSError as error:
                if name not in self._failing:
                    log.warning("%s: %s; keeping the peers known so far", name, error)
                self._failing.add(name)
                for member in self._members.values():
                    if member.source == str(name):
                        member.seen = time.monotonic()
                continue
            self._failing.discard(name)
            for url in sorted(urls):
                if url not in self._members:
                    self._join(url, role, str(name))
                if self._members[url].source == str(name):
                    self._members[url].seen = time.monotonic()
        await self._prune()

    async def _prune(self) -> None:
        now = time.monotonic()
        for url, member in list(self._members.items()):
            limit = ANNOUNCED_SECONDS if member.source == "announced" else REFRESH_SECONDS
            gone = member.source != "listed" and now - member.seen > limit
            if gone and self._peers[url].life is None:
                del self._members[url]
                log.info("peer=%s role=%s state=removed source=%s", url, member.role, member.source)
                await self._peers.remove(url).close()

    def _join(self, url: EndpointURL, role: str, source: str) -> None:
        self._peers.add(url, self._dial(url, role))
        self._members[url] = _Member(role, source, time.monotonic())
        log.info("peer=%s role=%s state=connecting source=%s", url, role, source)

    async def _refresh_for_ever(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("looking for peers failed; trying again")
            await asyncio.sleep(REFRESH_SECONDS)
