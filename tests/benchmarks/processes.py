"""What becomes of processes that a benchmark has started."""

from __future__ import annotations

from pathlib import Path


def state(pid: int) -> str:
    """As the kernel's letter; a process that is gone is as good as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def alive(pid: int) -> bool:
    """Not a zombie either: its own parent may be gone, and who reaps it is not ours to say."""
    return state(pid) != "Z"
