"""Whom a request may make this server call: hosts that the operator names, and no private network by the back
door.

Whoever runs the DNS of an allowed host can make it resolve to any address, so addresses are looked at when a
connection is made: private ones are refused, unless their network is allowed as well.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

MAX_URL_CHARS = 2048

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # public by its own number, whatever is behind it

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Targets:
    """Hosts, with a port or for the default one of a URL's scheme, and networks."""

    def __init__(self, entries: Iterable[str], option: str) -> None:
        """``HOST``, ``HOST:PORT`` or ``ADDRESS/BITS`` each. Raises ValueError that names ``option`` and
        quotes what is none of them.
        """
        self._hosts: set[tuple[str, int | None]] = set()
        self._networks: list[Network] = []
        for entry in entries:
            match = _HOST.fullmatch(entry)
            try:
                if match is None:
                    self._networks.append(ipaddress.ip_network(entry))
                    continue
                host = match[1].strip("[]").lower()
                self._hosts.add((host, int(match[2]) if match[2] else None))
                if (literal := _address(host)) is not None:
                    self._networks.append(ipaddress.ip_network(literal))
            except ValueError as error:
                expected = "HOST, HOST:PORT or a network like 10.0.0.0/8"
                raise ValueError(f"{option} {entry!r}: expected {expected}: {error}") from None

    def check(self, text: str) -> URL:
        """Raises ValueError that says what is wrong with the URL, or that it is not allowed."""
        if len(text) > MAX_URL_CHARS or not re.fullmatch(r"[\x21-\x7e]+", text):
            raise ValueError(f"expected at most {MAX_URL_CHARS} printable ASCII characters without spaces")
        try:
            url = URL(text, encoded=True)  # signatures are of the very characters
            host, port = url.raw_host, url.port
        except ValueError as error:
            raise ValueError(f"it is not a URL: {error}") from None
        if url.scheme not in ("http", "https") or not host or url.raw_user is not None or "#" in text:
            raise ValueError("expected http(s)://host[:port]/path, without a user and without '#'")
        default = url.is_default_port()
        if (host.lower(), port) not in self._hosts and not (default and (host.lower(), None) in self._hosts):
            raise ValueError(f"{host}:{port} is not among the hosts that this server may call")
        if (literal := _address(host)) is not None and not self.allows(literal):
            raise ValueError(f"{host} is not a public address")
        return url

    def allows(self, address: Address) -> bool:
        """Whether a connection may be made to this address."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return _is_public(address) or any(address in network for network in self._networks)


class TargetResolver(AbstractResolver):
    """Addresses of a host, without those that ``targets`` do not allow."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError."""
        found = await self._inner.resolve(host, port, family)
        allowed = [
            result
            for result in found
            if (address := _address(result["host"])) is not None and self._targets.allows(address)
        ]
        if not allowed:
            raise OSError(f"{host} has no public address")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        tunnels = (address.sixtofour, address.teredo, address in _NAT64)
        if any(tunnels):  # into an IPv4 network of somebody's choice
            return False
    return address.is_global and not address.is_multicast


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
