"""`python -m benchmarks.peers`: what three stages without compute cost on Triptych, Ray Serve and mosec."""

from __future__ import annotations

import sys

from benchmarks.peers import overhead
from benchmarks.peers.systems import SYSTEMS, versions
from benchmarks.row import Row
from benchmarks.runner import Topic, main

_EMBEDDINGS = 4 * 10**6

TOPIC = Topic(
    "peers",
    "Measures requests through three stages that compute nothing, on Triptych and on its peers.",
    (
        Row("tiny", "4 KB + 4 KB", None, overhead.measure(4096, 4096), overhead.summary, "ms"),
        Row("medium", "4 + 16 MB", None, overhead.measure(_EMBEDDINGS, 16 * 10**6), overhead.summary, "ms"),
        Row("large", "4 + 42 MB", None, overhead.measure(_EMBEDDINGS, 42 * 10**6), overhead.summary, "ms"),
    ),
    short=("tiny", "large"),
    table=overhead.table,
    versions=versions,
    short_rounds=1,
)

if __name__ == "__main__":
    for system in SYSTEMS:
        if not system.installed():
            print(f"benchmarks.peers: {system.name} is left out, make peers installs it", file=sys.stderr)
    sys.exit(main(TOPIC))
