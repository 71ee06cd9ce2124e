"""The peer table: one entry for each endpoint URL, always in URL order."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import TypeVar

from transfer.urls import EndpointURL

P = TypeVar("P")


class PeerTable(Mapping[EndpointURL, P]):
    """Maps each peer's URL to everything known of that peer, whatever the order in which peers came."""

    def __init__(self) -> None:
        self._urls: list[EndpointURL] = []
        self._entries: dict[EndpointURL, P] = {}

    def add(self, url: EndpointURL, entry: P) -> None:
        """Raises ValueError if the peer is known already."""
        if url in self._entries:
            raise ValueError(f"peer {url} is in the table already")
        insort(self._urls, url)
        self._entries[url] = entry

    def remove(self, url: EndpointURL) -> P:
        """Returns the entry that was there; raises KeyError if the peer is unknown."""
        entry = self[url]
        del self._entries[url]
        del self._urls[bisect_left(self._urls, url)]
        return entry

    def __getitem__(self, url: EndpointURL) -> P:
        try:
            return self._entries[url]
        except KeyError:
            raise KeyError(f"peer {url} is not in the table") from None

    def __iter__(self) -> Iterator[EndpointURL]:
        return iter(self._urls)

    def __len__(self) -> int:
        return len(self._urls)

    def __repr__(self) -> str:
        return f"PeerTable({', '.join(map(str, self))})"
