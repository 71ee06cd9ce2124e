"""``triptych orchestrator``: the HTTP endpoint, from its options to its exit."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
import sys
from pathlib import Path

from aiohttp import web

from orchestrator.core import CoreOptions, Orchestrator
from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from orchestrator.scheduler import SchedulerOptions
from orchestrator.store import StoreError
from transfer.urls import EndpointURL

log = logging.getLogger(__name__)

ROLES = ("encoder", "denoiser", "decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for role in ROLES:
        parser.add_argument(
            f"--{role}-urls",
            nargs="+",
            default=[],
            metavar="grpc://HOST:PORT",
            help=f"the {role}s, separated by spaces or commas; started before or after this process",
        )
    add_server_arguments(parser)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", default="info", choices=levels, help="(default: %(default)s)")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the addresses of the roles."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve HTTP on (default: %(default)s)")
    add("--port", type=int, default=30010, help="port to serve HTTP on (default: %(default)s)")
    add(
        "--public-url",
        metavar="URL",
        help="how clients reach this server, for links (default: from each request)",
    )
    add(
        "--data-dir",
        type=Path,
        default=Path("triptych-data"),
        metavar="DIR",
        help="job database, and videos/ as this host sees what the decoders write (default: %(default)s)",
    )
    add("--database-url", metavar="URL", help="job store (default: SQLite in the data directory)")
    add(
        "--max-queue",
        type=int,
        default=1000,
        metavar="N",
        help="requests accepted and not finished; more are answered 429 (default: %(default)s)",
    )
    add(
        "--max-tries",
        type=int,
        default=4,
        metavar="N",
        help="runs of one stage before its request fails (default: %(default)s)",
    )
    add(
        "--job-timeout",
        type=float,
        default=3600.0,
        metavar="S",
        help="a request not finished by then fails (default: %(default)s)",
    )
    add(
        "--absence-timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="how long requests wait for a role of which there is no instance (default: %(default)s)",
    )
    add(
        "--max-prompt",
        type=int,
        default=8192,
        metavar="N",
        help="characters of a prompt (default: %(default)s)",
    )
    add(
        "--max-body", type=int, default=1 << 20, metavar="N", help="bytes of a request (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s %(levelname)s orchestrator %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(_serve(args))
    except (ValueError, OSError, StoreError) as error:
        print(f"triptych orchestrator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(args: argparse.Namespace) -> None:
    data_dir: Path = args.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    orchestrator = Orchestrator(
        CoreOptions(
            peers=tuple((url, role) for role in ROLES for url in parse_urls(getattr(args, f"{role}_urls"))),
            database_url=args.database_url or f"sqlite:///{data_dir / 'jobs.sqlite'}",
            output_dir=data_dir / "videos",
            max_queue=args.max_queue,
            scheduler=SchedulerOptions(args.max_tries, args.job_timeout, args.absence_timeout),
        )
    )
    http = HttpOptions(
        public_url=args.public_url, max_body_bytes=args.max_body, max_prompt_chars=args.max_prompt
    )
    runner = create_runner(orchestrator, http)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await orchestrator.start()
    try:
        await runner.setup()
        await web.TCPSite(runner, args.host, args.port).start()
        log.info("serving on http://%s:%d", args.host, args.port)
        await stopping.wait()
    finally:
        await runner.cleanup()
        await orchestrator.close()
    log.info("stopped")


def parse_urls(texts: list[str]) -> list[EndpointURL]:
    """Endpoint URLs from arguments that each hold one or several, separated by commas or semicolons."""
    return [EndpointURL.parse(part) for text in texts for part in re.split(r"[,;]", text) if part.strip()]
