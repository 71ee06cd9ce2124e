"""The peer table: one entry for each endpoint URL, always in URL order."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, ValuesView
from typing import TypeVar

from transfer.urls import EndpointURL

P = TypeVar("P")


class PeerTable(Mapping[EndpointURL, P]):
    """Maps each peer's URL to everything known of that peer, whatever the order in which peers came."""

    def __init__(self) -> None:
        self._urls: list[EndpointURL] = []
        self._entries: dict[EndpointURL, P] = {}
        self._ordered: list[P] = []  # the entries, as their URLs

    def add(self, url: EndpointURL, entry: P) -> None:
        """Raises ValueError if the peer is known already."""
        if url in self._entries:
            raise ValueError(f"peer {url} is in the table already")
        place = bisect_left(self._urls, url)
        self._urls.insert(place, url)
        self._ordered.insert(place, entry)
        self._entries[url] = entry

    def remove(self, url: EndpointURL) -> P:
        """Returns the entry that was there; raises KeyError if the peer is unknown."""
        entry = self[url]
        del self._entries[url]
        place = bisect_left(self._urls, url)
        del self._urls[place], self._ordered[place]
        return entry

    def values(self) -> ValuesView[P]:
        """Without looking each up by its URL: whoever decides something asks for all of them."""
        return _Values(self, self._ordered)

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


class _Values(ValuesView[P]):
    def __init__(self, table: PeerTable[P], entries: list[P]) -> None:
        super().__init__(table)
        self._entries = entries

    def __iter__(self) -> Iterator[P]:
        return iter(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries
