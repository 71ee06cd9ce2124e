"""How Mooncake is loaded: what the operator decides, its settings, and what keeps it from starting."""

import importlib
import json
import os
from dataclasses import dataclass
from typing import Any

PROTOCOLS = ("tcp", "rdma", "nvlink")

# Mooncake reads its settings from the environment, most of them when it is loaded.
_SETTINGS = {
    "MC_DISABLE_METACACHE": "1",  # else a peer restarted at the same port is never reached again
    "MC_TCP_STATUS_TIMEOUT_SEC": "10",  # a peer that says nothing for so long is not coming back:
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "10",  # frees the block (30 by default)
    "MC_LOG_LEVEL": "ERROR",
}
_HARMFUL = ("MC_TCP_PROTO", "MC_LOG_DIR")  # unacknowledged writes; abort at start
_TRANSPORTS = ("MC_FORCE_TCP", "MC_INTRANODE_NVLINK", "MC_FORCE_MNNVL")  # each outweighs what is asked for

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
            raise ValueError(
                f"RDMA devices {self.devices!r} are of no use to mooncake protocol {self.protocol}"
            )


def load(options: MooncakeOptions) -> Any:
    """The module `mooncake.engine`, with the settings that go with `options`.

    Raises OSError that says what is missing.
    """
    for name in (*_HARMFUL, *_TRANSPORTS):
        os.environ.pop(name, None)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if options.protocol == "tcp":  # what `initialize` is told is a hint: with an RDMA device it would be rdma
        os.environ["MC_FORCE_TCP"] = "1"
    try:
        library = importlib.import_module("mooncake.engine")
    except ImportError as error:
        raise OSError(f"mooncake cannot be loaded ({error}): {_INSTALL}") from None
    if options.protocol == "nvlink":
        raise OSError(f"mooncake protocol nvlink is not to be had: {_why_no_nvlink(library)}")
    return library


def initialize(host: str, options: MooncakeOptions) -> Any:
    """A `mooncake.engine.TransferEngine` that listens, and that peers dial at `host`.

    Raises OSError that says what is missing.
    """
    engine = load(options).TransferEngine()
    if engine.initialize(host, "P2PHANDSHAKE", options.protocol, options.devices):
        raise OSError(f"mooncake cannot start on {host} with {options.protocol}; its log says why")
    if options.protocol == "rdma" and not _has_rdma(engine, options.devices):
        raise OSError(f"mooncake finds no RDMA device {options.devices or 'on this host'}")
    return engine


def _why_no_nvlink(library: Any) -> str:
    """The first of the reasons. Asked to start all the same, Mooncake would say nothing and use TCP."""
    if not any(getattr(library, f"SUPPORT_{kind}", False) for kind in ("INTRA_NVLINK", "MNNVL")):
        return "this build has none; those of the extras mooncake-cu12 and mooncake-cu13 do"
    import torch  # options of a role come from this module: --help need not wait for torch

    if not torch.cuda.is_available():
        return "this host has no CUDA device"
    # Mooncake's NVLink transports refuse to register other memory, or register it and export nothing.
    return (
        "NVLink moves device memory, and slots lie in host memory; take tcp or rdma, or shm within one host"
    )


def _has_rdma(engine: Any, devices: str) -> bool:
    topology = json.loads(engine.get_local_topology(devices))
    return any(names for preferred_and_others in topology.values() for names in preferred_and_others)
