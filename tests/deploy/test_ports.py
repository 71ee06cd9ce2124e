"""Ports for processes that are about to start."""

from __future__ import annotations

import socket
from pathlib import Path

from deploy.ports import free_port


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(300)]
    assert len(set(ports)) == len(ports)


def test_none_is_in_use_or_may_be_taken_by_an_outgoing_connection() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(20):
        port = free_port()
        assert port < first
        with socket.create_server(("127.0.0.1", port)):
            assert free_port() != port
