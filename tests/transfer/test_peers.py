"""The peer table: order and identity come from the URL alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.peers import PeerTable
from transfer.urls import EndpointURL

urls = st.builds(
    EndpointURL, st.sampled_from(["a", "b", "10.0.0.2", "10.0.0.10", "::1"]), st.integers(1, 65535)
)


@given(st.lists(urls, unique=True), st.randoms())
def test_order_does_not_depend_on_arrival(arrivals: list[EndpointURL], random: object) -> None:
    table: PeerTable[str] = PeerTable()
    for url in arrivals:
        table.add(url, str(url))
    assert list(table) == sorted(arrivals)
    assert list(table.values()) == [str(url) for url in sorted(arrivals)]
    random.shuffle(arrivals)  # type: ignore[attr-defined]
    half = arrivals[: len(arrivals) // 2]
    for url in half:
        assert table.remove(url) == str(url)
    assert list(table) == sorted(set(arrivals) - set(half))
    assert list(table.values()) == [str(url) for url in table] and len(table.values()) == len(table)
    assert all(entry in table.values() for entry in table.values())


def test_a_peer_comes_once() -> None:
    table: PeerTable[int] = PeerTable()
    table.add(EndpointURL.parse("grpc://Host:1"), 1)
    with pytest.raises(ValueError, match="grpc://host:1"):
        table.add(EndpointURL.parse("grpc://host:1/"), 2)
    assert dict(table) == {EndpointURL("host", 1): 1}


def test_unknown_peers_are_named() -> None:
    table: PeerTable[int] = PeerTable()
    with pytest.raises(KeyError, match="grpc://host:1"):
        table.remove(EndpointURL("host", 1))
    assert table.get(EndpointURL("host", 1)) is None
