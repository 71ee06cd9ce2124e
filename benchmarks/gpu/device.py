"""What is to be known of the GPU: what it is, and how much of its memory each process holds."""

from __future__ import annotations

import subprocess
from typing import Any

import torch


def facts(device: torch.device) -> dict[str, Any]:
    """For the record; of a machine without a GPU, that there is none."""
    if device.type != "cuda":
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "driver": next(iter(_ask("--query-gpu=driver_version")), ""),
        "cuda": torch.version.cuda,
    }


def memory_of(pids: set[int]) -> dict[int, int]:
    """Bytes of GPU memory by process, the driver's own for it included; empty where that is not told, as in
    containers with process ids of their own.
    """
    held: dict[int, int] = {}
    for line in _ask("--query-compute-apps=pid,used_memory"):
        pid, _, mebibytes = line.partition(", ")
        if mebibytes.isdigit() and int(pid) in pids:
            held[int(pid)] = held.get(int(pid), 0) + (int(mebibytes) << 20)
    return held


def memory_in_use() -> int:
    """Bytes of the first GPU, of whatever process; 0 without one."""
    used = next(iter(_ask("--query-gpu=memory.used")), "0")
    return int(used) << 20 if used.isdigit() else 0


def _ask(query: str) -> list[str]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()
