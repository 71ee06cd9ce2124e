"""Endpoint URLs: one canonical text for each peer, and a clear refusal of everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.urls import EndpointURL, is_loopback


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("grpc://localhost:30100", "grpc://localhost:30100"),
        ("  GRPC://Encoder-0.Example.COM:80/ \n", "grpc://encoder-0.example.com:80"),
        ("grpc://my_service:007", "grpc://my_service:7"),
        ("grpc://10.0.0.1:1", "grpc://10.0.0.1:1"),
        ("grpc://[2001:DB8:0:0::1]:65535", "grpc://[2001:db8::1]:65535"),
        ("grpc://[::1]:9/", "grpc://[::1]:9"),
    ],
)
def test_canonical(text: str, canonical: str) -> None:
    url = EndpointURL.parse(text)
    assert str(url) == canonical
    assert url.target == canonical.removeprefix("grpc://")
    assert EndpointURL.parse(canonical) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grpc://host:", "port ''"),
        ("grpc://host:0", "port 0"),
        ("grpc://host:65536", "port 65536"),
        ("grpc://host:1e3", "'1e3' is not a number"),
        ("grpc://host:\u0661", "is not a number"),
        ("http://host:1", "expected grpc"),
        ("host:1", "expected grpc"),
        ("grpc://:1", "neither a host name"),
        ("grpc://a..b:1", "neither a host name"),
        ("grpc://-a:1", "neither a host name"),
        ("grpc://h\u00f6st:1", "neither a host name"),
        ("grpc://1.2.3:1", "1.2.3"),
        ("grpc://01.2.3.4:1", "01.2.3.4"),
        ("grpc://::1:1", "is not a number"),
        ("grpc://[1.2.3.4]:1", "brackets"),
        ("grpc://[::g]:1", "::g"),
        ("grpc://[fe80::1%eth0]:1", "zone"),
        ("grpc://user@host:1", "expected grpc"),
        ("grpc://host:1/path", "expected grpc"),
        ("grpc://host:1?x=1", "expected grpc"),
        ("", "expected grpc"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint URL") as caught:
        EndpointURL.parse(text)
    assert reason in str(caught.value)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        url = EndpointURL.parse(text)
    except ValueError:
        return
    assert EndpointURL.parse(str(url)) == url


def test_no_instance_is_not_canonical() -> None:
    assert EndpointURL("LOCALHOST", 1) == EndpointURL.parse("grpc://localhost:1")
    with pytest.raises(ValueError, match="neither"):
        EndpointURL("a b", 1)


def test_ports_are_ordered_as_numbers() -> None:
    assert EndpointURL("a", 9) < EndpointURL("a", 10) < EndpointURL("b", 1)


def test_a_url_without_a_port_has_the_default_one() -> None:
    assert EndpointURL.parse("grpc://Node-A/") == EndpointURL("node-a", 30100)
    assert EndpointURL.parse("grpc://[::1]") == EndpointURL.parse("grpc://[0:0::1]:30100")


def test_loopback() -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "::1", "[::1]"):
        assert is_loopback(host), host
    for host in ("", "0.0.0.0", "::", "[::]", "10.0.0.1", "node-a", "localhost.example.com"):
        assert not is_loopback(host), host
