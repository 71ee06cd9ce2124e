"""Ports for processes that are about to start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20000
_given: set[int] = set()  # by this process: whoever asked may not listen there yet


def free_port() -> int:
    """Free now, not given before, and not one that the kernel gives to outgoing connections: until somebody
    listens there, any of them could take it. Where the system has no others, one of those.
    """
    for port in random.sample(_lasting(), len(_lasting())):
        if port not in _given and _free(port):
            _given.add(port)
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        any_port: int = probe.getsockname()[1]
        return any_port


def _lasting() -> range:
    try:
        return range(_LOWEST, int(_EPHEMERAL.read_text().split()[0]))
    except OSError:  # no Linux
        return range(0)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
