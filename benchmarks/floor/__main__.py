"""`python -m benchmarks.floor`: the least that a request can cost, and what it costs Triptych."""

import sys

from benchmarks.floor.rows import TOPIC
from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(main(TOPIC))
