"""How Mooncake is loaded: what the operator decides, its settings, and what keeps it from starting."""

import importlib
import json
import os
from dataclasses import dataclass
from typing import Any

PROTOCOLS = ("tcp", "rdma")

# Mooncake reads its settings from the environment, most of them when it is loaded.
_SETTINGS = {
    "MC_DISABLE_METACACHE": "1",  # else a peer restarted at the same port is never reached again
    "MC_TCP_STATUS_TIMEOUT_SEC": "10",  # a peer that says nothing for so long is not coming back:
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "10",  # frees the block (30 by default)
    "MC_LOG_LEVEL": "ERROR",
}
_HARMFUL = ("MC_TCP_PROTO", "MC_LOG_DIR")  # unacknowledged writes; abort at start

_INSTALL = "pip install 'triptych[mooncake]' and, on Debian, apt install libibverbs1 libnuma1 libcurl4"


@dataclass(frozen=True)
class MooncakeOptions:
    """What the operator decides. `devices` are names of RDMA devices, with commas, or empty for all.

    Raises PermissionError unless the network is declared as trusted, ValueError for an unknown protocol
    and for devices that would not be used.
    """

    protocol: str = "tcp"
    devices: str = ""
    trusted_network: bool = False

    def __post_init__(self) -> None:
        if not self.trusted_network:
            raise PermissionError(
                "mooncake listens on all interfaces and has no authentication: whoever reaches this host"
                " could read and write its slots, so it needs a network that is declared as trusted"
            )
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"mooncake protocol {self.protocol!r}: expected one of {PROTOCOLS}")
        if self.devices and self.protocol != "rdma":
            raise ValueError(f"RDMA devices {self.devices!r} are of no use to mooncake protocol tcp")


def initialize(host: str, options: MooncakeOptions) -> Any:
    """A `mooncake.engine.TransferEngine` that listens, and that peers dial at `host`.

    Raises OSError that says what is missing.
    """
    for name in (*_HARMFUL, "MC_FORCE_TCP"):
        os.environ.pop(name, None)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if options.protocol == "tcp":  # the argument below is a hint: with an RDMA device it would be rdma
        os.environ["MC_FORCE_TCP"] = "1"
    try:
        engine = importlib.import_module("mooncake.engine").TransferEngine()
    except ImportError as error:
        raise OSError(f"mooncake cannot be loaded ({error}): {_INSTALL}") from None
    if engine.initialize(host, "P2PHANDSHAKE", options.protocol, options.devices):
        raise OSError(f"mooncake cannot start on {host} with {options.protocol}; its log says why")
    if options.protocol == "rdma" and not _has_rdma(engine, options.devices):
        raise OSError(f"mooncake finds no RDMA device {options.devices or 'on this host'}")
    return engine


def _has_rdma(engine: Any, devices: str) -> bool:
    topology = json.loads(engine.get_local_topology(devices))
    return any(names for preferred_and_others in topology.values() for names in preferred_and_others)
