"""Ports that are still free when a process that was killed comes back."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20000


def lasting_port() -> int:
    """Free now, and not one that the kernel gives to outgoing connections while nobody listens there."""
    first = int(_EPHEMERAL.read_text().split()[0])
    for port in random.sample(range(_LOWEST, first), first - _LOWEST):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port from {_LOWEST} to {first} is free")


def lasting_urls(counts: dict[str, int]) -> dict[str, list[str]]:
    """Endpoint URLs for so many roles of each kind."""
    return {
        role: [f"grpc://127.0.0.1:{lasting_port()}" for _ in range(count)] for role, count in counts.items()
    }
