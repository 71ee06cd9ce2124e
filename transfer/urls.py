"""Endpoint URLs: the canonical `grpc://host:port` that is the identity of a peer."""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

_URL = re.compile(
    r"grpc://(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^\[\]:/?#@]*))(?::(?P<port>[^/?#@]*))?/?", re.IGNORECASE
)
DEFAULT_PORT = 30100  # of a URL that names none

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


@dataclass(frozen=True, order=True)
class EndpointURL:
    """Where a peer's control port is dialled; equal URLs are the same peer. Ordered by host, then port.

    `host` is a lower-case name, an IPv4 address or a compressed IPv6 address without brackets.
    Names are not resolved: `localhost` and `127.0.0.1` are two peers.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not between 1 and 65535")
        object.__setattr__(self, "host", _canonical_host(self.host))

    @classmethod
    def parse(cls, text: str) -> "EndpointURL":
        """Reads `grpc://host:port`, forgiving case, a trailing slash, surrounding space and no port.

        Raises ValueError that quotes the text and says what is wrong with it.
        """
        return _parse(text)

    @property
    def target(self) -> str:
        """`host:port`, with brackets round an IPv6 address: what a channel is opened to."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"grpc://{self.target}"


@lru_cache(1024)  # every task names the URLs of its inputs, which are always the same few
def _parse(text: str) -> EndpointURL:
    match = _URL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"endpoint URL {text!r}: expected grpc://host:port")
    host, port = match["v6"] if match["v6"] is not None else match["name"], match["port"]
    port = port if port is not None else str(DEFAULT_PORT)
    if not re.fullmatch("[0-9]{1,5}", port):
        raise ValueError(f"endpoint URL {text!r}: port {port!r} is not a number between 1 and 65535")
    if (match["v6"] is not None) != (":" in host):
        raise ValueError(f"endpoint URL {text!r}: brackets are for IPv6 addresses")
    try:
        return EndpointURL(host, int(port))
    except ValueError as error:
        raise ValueError(f"endpoint URL {text!r}: {error}") from None


def is_loopback(host: str) -> bool:
    """Only this machine reaches what listens on `host`: a name or an address, with brackets or without."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _canonical_host(host: str) -> str:
    host = host.lower()
    if ":" in host:
        if "%" in host:
            raise ValueError(f"host {host!r}: a zone means nothing to other machines")
        return ipaddress.IPv6Address(host).compressed
    if re.fullmatch("[0-9.]+", host):
        return str(ipaddress.IPv4Address(host))
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise ValueError(f"host {host!r} is neither a host name nor an IP address")
    return host
