"""`python -m benchmarks.requests`: what one request costs, in time and in CPU, and what polls do."""

import sys

from benchmarks.requests.rows import TOPIC
from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(main(TOPIC))
