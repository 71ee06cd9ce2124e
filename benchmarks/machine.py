"""Facts that a measurement means nothing without: commit, machine, load, versions, date."""

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = "docs/benchmarks"  # where one topic's may already lie while the next is measured
ROOT = Path(__file__).parent.parent
_CPU = Path("/sys/devices/system/cpu/cpu0/cache")


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """What a result is recorded with; `packages` are distributions, left out where not installed."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cache_bytes": cache_bytes(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),  # of the minute before the run
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }


def cache_bytes() -> int:
    """The size of the largest cache of a core; 0 where the kernel does not say."""
    sizes = [file.read_text().strip() for file in _CPU.glob("index*/size")]
    return max((int(size.removesuffix("K")) << 10 for size in sizes), default=0)


class Others:
    """What other processes have used of this machine since this was made: they disturb a measurement."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._used = _seconds_of_others()

    def cores(self) -> float:
        """As a number of cores. Children count as ours once they have ended."""
        return max(0.0, (_seconds_of_others() - self._used) / (time.monotonic() - self._started))


def _seconds_of_others() -> float:
    user, nice, system, _, _, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    everybody = sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")
    ours = os.times()
    return everybody - ours.user - ours.system - ours.children_user - ours.children_system


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """The commit that was measured, with a plus sign if files differed from it, other than results."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", f":!{RESULTS}")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changes else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
