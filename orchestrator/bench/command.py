"""``triptych bench``: its options, and the run from the first request to the report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.bench.load import Load, Plan
from orchestrator.bench.outcome import Outcome, Summary
from orchestrator.bench.report import Progress, text
from orchestrator.client import ClientError, VideoClient
from orchestrator.request_options import add_field_arguments, add_server_arguments, fields
from transfer.secrets import read_token

PROMPT = "a red circle moving right"
REQUESTS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        help="closed loop: N clients, one request each (default: 1)",
    )
    loop.add_argument(
        "--rate", type=_positive, metavar="R", help="open loop: R requests per second, at random (Poisson)"
    )
    parser.add_argument(
        "--requests", type=_count, metavar="N", help=f"how many in all (default: {REQUESTS}, or --duration)"
    )
    parser.add_argument("--duration", type=_positive, metavar="S", help="send requests for S seconds")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=1,
        metavar="N",
        help="requests before, not counted (default: %(default)s)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="(default: %(default)s)")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt in each line, taken in turn")
    add_field_arguments(parser)
    parser.add_argument(
        "--field",
        type=_field,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other field of the request, its value as JSON or as it stands; can be repeated",
    )
    parser.add_argument(
        "--poll", type=_positive, default=0.25, metavar="S",
        help="seconds between two looks at a video; times are late by up to that (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_positive, default=3600.0, metavar="S", help="of a request (default: %(default)g)"
    )
    parser.add_argument(
        "--max-in-flight", type=_count, default=1000, metavar="N",
        help="of an open loop; a request on top is not sent and counts as failed (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--delete", action="store_true", help="delete each video once it is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")


def run(args: argparse.Namespace) -> int:
    """0: measured, whatever failed; 1: no request got its video, or the load could not start; 130: Ctrl-C,
    after which what there is was reported, and jobs that were not finished deleted.
    """
    try:
        plan = Plan(
            requests=args.requests or (None if args.duration else REQUESTS),
            seconds=args.duration,
            concurrency=args.concurrency or (None if args.rate else 1),
            rate=args.rate,
            max_in_flight=args.max_in_flight,
            timeout=args.timeout,
            poll=args.poll,
            delete=args.delete,
        )
        key = None if args.api_key_file is None else read_token(args.api_key_file)
        prompts = _prompts(args.prompts) if args.prompts else [args.prompt]
        asked = {**fields(args), **dict(args.field)}
        outcomes, interrupted = asyncio.run(_measure(args.server, key, plan, prompts, asked, args.warm_up))
        summary = Summary.of(outcomes)
        print(text(summary))
        if args.json:
            record = _record(args.server, plan, asked, outcomes, summary)
            args.json.write_text(json.dumps(record, indent=1) + "\n")
    except (ClientError, OSError, ValueError) as error:
        print(f"triptych bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if interrupted:
        print("triptych bench: interrupted", file=sys.stderr)
        return 130
    return 0 if summary.completed else 1


async def _measure(
    server: str, key: str | None, plan: Plan, prompts: list[str], asked: dict[str, Any], warm_up: int
) -> tuple[list[Outcome], bool]:
    """The outcomes, and whether it was interrupted."""
    connections = plan.max_in_flight if plan.rate else plan.concurrency or 1
    async with VideoClient(server, key, connections=connections) as client:
        if warm_up > 0:
            alone = replace(plan, requests=warm_up, seconds=None, concurrency=1, rate=None)
            await _warm_up(client, alone, prompts, asked)
        progress = Progress(plan.requests)
        load = Load(client, plan, prompts, asked, progress.ended)
        running = asyncio.ensure_future(load.run())
        ticking = asyncio.ensure_future(_tick(progress, load))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            return load.outcomes, True
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking
            progress.end()
        return load.outcomes, False


async def _warm_up(client: VideoClient, plan: Plan, prompts: list[str], asked: dict[str, Any]) -> None:
    """A server that cannot do even one of them is not worth a load. Raises ClientError with its reason."""
    load = Load(client, plan, prompts, asked)
    await load.run()
    if all(outcome.failure for outcome in load.outcomes):
        raise ClientError(f"no request of the warm-up got its video: {load.outcomes[0].failure}")


async def _tick(progress: Progress, load: Load) -> None:
    """So that the line goes on while nothing ends."""
    while True:
        await asyncio.sleep(0.2)
        progress.show(load.in_flight)


def _record(
    server: str, plan: Plan, asked: dict[str, Any], outcomes: list[Outcome], summary: Summary
) -> dict[str, Any]:
    """Seconds; ``requests`` in the order of their ends."""
    return {
        "benchmark": "server",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "server": server,
        "plan": asdict(plan),
        "fields": asked,
        **summary.record(),
        "requests": [{**asdict(outcome), "latency": outcome.latency} for outcome in outcomes],
    }


def _prompts(path: Path) -> list[str]:
    found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no prompt, expected one in each line")
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
