"""A role's process keeps what it has freed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# As a model computes: on a thread, tensors of some megabytes, all of them free at the end of a request.
REQUESTS = """if True:
    import json, resource, sys, threading
    from services.heap import keep_freed
    kept = keep_freed() if sys.argv[1] == "keep" else None
    def request():
        tensors = [bytearray(5 << 20) for _ in range(20)] + [bytearray(50 << 20)]
        for tensor in tensors:
            tensor[::4096] = bytes(len(tensor) >> 12)
    faults = []
    def requests():
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            request()
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    thread = threading.Thread(target=requests)
    thread.start()
    thread.join()
    print(json.dumps([kept, faults]))
"""
PAGES = (20 * 5 + 50 << 20) >> 12  # of a request


def requests(word: str, **environment: str) -> tuple[bool | None, list[int]]:
    """What ``keep_freed`` returned, and page faults by request."""
    done = subprocess.run(
        [sys.executable, "-c", REQUESTS, word],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, faults = json.loads(done.stdout)
    return kept, faults


def test_the_second_request_needs_no_new_pages() -> None:
    kept, faults = requests("keep")
    assert kept and faults[0] > PAGES // 2 and max(faults[1:]) < PAGES // 20
    _, faults = requests("leave")
    assert min(faults) > PAGES // 2, "glibc keeps it by itself now: services/heap.py has no use any more"


def test_what_the_environment_says_goes_before() -> None:
    kept, faults = requests("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_TOP_PAD_="131072")
    assert kept and min(faults) > PAGES // 2
