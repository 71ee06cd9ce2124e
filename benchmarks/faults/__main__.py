"""`python -m benchmarks.faults`: one of two denoisers is killed under load, on Triptych and on its peers."""

from __future__ import annotations

import sys

from benchmarks.faults import kill
from benchmarks.peers.systems import SYSTEMS, versions
from benchmarks.row import Goal, Row
from benchmarks.runner import Topic, main

TOPIC = Topic(
    "faults",
    "Kills one of two denoisers under load, on Triptych and on its peers.",
    tuple(
        Row(
            system.name,
            "a denoiser killed: failed or wrong",
            Goal(0) if system is SYSTEMS[0] else None,
            kill.measure(system),
            kill.summary,
        )
        for system in SYSTEMS
        if system.installed()
    ),
    short=(SYSTEMS[0].name,),
    table=kill.table,
    versions=versions,
    rounds=3,
    short_rounds=1,
)

if __name__ == "__main__":
    sys.exit(main(TOPIC))
