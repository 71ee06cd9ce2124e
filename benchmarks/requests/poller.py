"""Many clients that poll, in a process of their own: `python -m benchmarks.requests.poller` prints JSON.

Open loop: each connection asks at fixed times, whatever became of the answers before, and an answer's time
counts from when it was due to be asked for. So a server that stands still shows in all polls that would have
come meanwhile. Bounded: it ends after the time that it is given, and connects to this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
from dataclasses import dataclass, field
from typing import Any

POLLS_PER_SECOND = 10  # of each connection
LIST_SHARE = 0.05  # of the polls ask for a page of jobs instead of one
TIMEOUT_SECONDS = 60.0  # for one answer
_HEADERS = (
    "Host: 127.0.0.1\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
    "User-Agent: triptych-benchmark\r\n\r\n"
)


@dataclass
class Seen:
    """Seconds of each answer, and what was no answer."""

    polls: list[float] = field(default_factory=list)
    lists: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def poll(port: int, ids: list[str], connections: int, seconds: float) -> Seen:
    """``seconds`` of polls of all connections, spread evenly over time and over the jobs."""
    seen = Seen()
    start = asyncio.get_running_loop().time() + 0.1
    clients = (
        _client(port, ids, start + number / connections / POLLS_PER_SECOND, start + seconds, seen, number)
        for number in range(connections)
    )
    await asyncio.gather(*clients)
    return seen


async def _client(port: int, ids: list[str], due: float, end: float, seen: Seen, number: int) -> None:
    now = asyncio.get_running_loop().time
    chance = random.Random(number)
    jobs = itertools.cycle(chance.sample(ids, len(ids)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while due < end:
            await asyncio.sleep(max(due - now(), 0.0))
            is_list = chance.random() < LIST_SHARE
            path = "/v1/videos" if is_list else f"/v1/videos/{next(jobs)}"
            writer.write(f"GET {path} HTTP/1.1\r\n{_HEADERS}".encode())
            problem = await asyncio.wait_for(_answer(reader), TIMEOUT_SECONDS)
            (seen.lists if is_list else seen.polls).append(now() - due)
            if problem:
                seen.failures.append(f"{path}: {problem}")
            due += 1 / POLLS_PER_SECOND
    except (OSError, EOFError, asyncio.TimeoutError, ValueError) as error:
        seen.failures.append(f"connection {number} broke: {error!r}")
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> str:
    """What is wrong with it, or nothing."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length: ")[2].split("\r\n", 1)[0])
    body = await reader.readexactly(length)
    if not head.startswith("http/1.1 200 "):
        return f"{head.splitlines()[0]} {body[:200]!r}"
    if not (body.startswith(b"{") and body.endswith(b"}")):
        return f"no JSON: {body[:200]!r}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests.poller", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    ids = sys.stdin.read().split()
    seen = asyncio.run(poll(args.port, ids, args.connections, args.seconds))
    record: dict[str, Any] = {"polls": seen.polls, "lists": seen.lists, "failures": seen.failures}
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
