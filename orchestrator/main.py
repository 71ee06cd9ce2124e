"""``triptych orchestrator``: the HTTP endpoint, from its options to its exit."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from orchestrator import credentials, output_options
from orchestrator.core import CoreOptions, Orchestrator
from orchestrator.credentials import Credentials
from orchestrator.http.app import create_runner
from orchestrator.http.arguments import access as load_access
from orchestrator.http.arguments import add_arguments as add_http_arguments
from orchestrator.http.arguments import limits
from orchestrator.http.options import HttpOptions
from orchestrator.membership import NamedPeers
from orchestrator.ownership import NameTaken
from orchestrator.policy import POLICIES
from orchestrator.scheduler import SchedulerOptions
from orchestrator.store import StoreError
from transfer.urls import EndpointURL, is_loopback

log = logging.getLogger(__name__)

ROLES = ("encoder", "denoiser", "decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for role in ROLES:
        parser.add_argument(
            f"--{role}-urls",
            nargs="+",
            default=[],
            metavar="URL",
            help=f"the {role}s, separated by spaces or commas: grpc://HOST:PORT each, or dns://NAME:PORT for"
            " all addresses behind a name; started before or after this process",
        )
    add_server_arguments(parser)
    credentials.add_arguments(parser)
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
        help="job database, thumbnails, and videos/ unless --output names another folder"
        " (default: %(default)s)",
    )
    add(
        "--database-url",
        metavar="URL",
        help="job store, for example postgresql://USER@HOST/NAME, which several orchestrators may share"
        " (default: SQLite in the data directory)",
    )
    add(
        "--name",
        help="of this orchestrator among those that share a database, the same after a restart"
        " (default: HOSTNAME:PORT)",
    )
    add(
        "--retention",
        type=float,
        default=7 * 86400.0,
        metavar="S",
        help="how long finished requests and their files are kept; 0: until they are deleted"
        " (default: %(default)s)",
    )
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
        help="runs of one stage that fail or lose their instance before its request fails"
        " (default: %(default)s)",
    )
    add(
        "--policy",
        choices=tuple(POLICIES),
        default="least_work",
        help="which instance gets a task: the one that would finish it first by what was measured, the one"
        " with the fewest tasks, or each in turn (default: %(default)s)",
    )
    add(
        "--priority-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="of waiting that one level of a request's priority is worth (default: %(default)s)",
    )
    add(
        "--job-timeout",
        type=float,
        default=3600.0,
        metavar="S",
        help="a request not finished by then fails; a request may ask for less (default: %(default)s)",
    )
    add(
        "--sync-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="the same for a request to /v1/videos/sync, whose client waits (default: %(default)s)",
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
        "--max-body",
        type=int,
        default=32 << 20,
        metavar="N",
        help="bytes of a request, its reference images included (default: %(default)s)",
    )
    add(
        "--max-reference-bytes",
        type=int,
        default=1 << 30,
        metavar="N",
        help="bytes of reference images in memory, of requests that arrive or are not finished; more are"
        " answered 429 (default: %(default)s)",
    )
    add(
        "--ignore-unknown-fields",
        action="store_true",
        help="let pass what is no field of a request, and name it in the reply's X-Ignored-Fields",
    )
    add(
        "--preview-cache",
        type=int,
        default=256 << 20,
        metavar="N",
        help="bytes of thumbnails and contact sheets that are kept (default: %(default)s)",
    )
    output_options.add_arguments(parser)
    add_http_arguments(parser)


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s %(levelname)s orchestrator %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(_serve(args))
    except (ValueError, OSError, StoreError, NameTaken) as error:
        print(f"triptych orchestrator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(args: argparse.Namespace) -> None:
    known_by = Credentials.from_arguments(args)
    data_dir: Path = args.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    access = load_access(args, data_dir)
    outputs = output_options.load(args, data_dir)
    listed, named = parse_peers({role: getattr(args, f"{role}_urls") for role in ROLES})
    orchestrator = Orchestrator(
        CoreOptions(
            peers=listed,
            named_peers=named,
            name=args.name or f"{socket.gethostname()}:{args.port}",
            database_url=args.database_url or f"sqlite:///{data_dir / 'jobs.sqlite'}",
            output_dir=outputs.folder,
            data_dir=data_dir,
            remote_outputs=outputs.remote,
            redirect_seconds=outputs.redirect_seconds,
            orphan_seconds=outputs.orphan_seconds,
            max_queue=args.max_queue,
            max_reference_bytes=args.max_reference_bytes,
            preview_bytes=args.preview_cache,
            retention_seconds=args.retention or None,
            credentials=known_by,
            webhooks=access.webhooks,
            scheduler=SchedulerOptions(
                max_tries=args.max_tries,
                job_seconds=args.job_timeout,
                absence_seconds=args.absence_timeout,
                policy=args.policy,
                priority_seconds=args.priority_seconds,
            ),
        )
    )
    http = HttpOptions(
        public_url=args.public_url,
        max_body_bytes=args.max_body,
        max_prompt_chars=args.max_prompt,
        max_timeout_seconds=args.job_timeout,
        sync_timeout=args.sync_timeout,
        ignore_unknown_fields=args.ignore_unknown_fields,
        cluster_token=known_by.token,
        api_keys=access.keys,
        signer=access.signer,
        cors_origins=access.origins,
        reference_targets=access.references,
        reference_timeout=args.reference_timeout,
        webhook_targets=None if access.webhooks is None else access.webhooks.targets,
        **limits(args),
    )
    runner = create_runner(orchestrator, http)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await orchestrator.start()
    # What is there now stays: a collection that looked through it again would hold up the loop.
    gc.collect()
    gc.freeze()
    try:
        await runner.setup()
        await web.TCPSite(runner, args.host, args.port).start()
        log.info("serving on http://%s:%d", args.host, args.port)
        _warn_if_open(args.host, args.port, known_by, access.keys is not None)
        requested = asyncio.create_task(stopping.wait())
        endings: tuple[asyncio.Future[Any], ...] = (requested, orchestrator.stopped)
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()
        if orchestrator.stopped.done():
            orchestrator.stopped.result()
    finally:
        await runner.cleanup()
        await orchestrator.close()
    log.info("stopped")


def _warn_if_open(host: str, port: int, known_by: Credentials, keyed: bool = False) -> None:
    if known_by or is_loopback(host):
        return
    clients = "" if keyed else "whoever reaches this port can send, watch and delete requests, and "
    options = "--cluster-token-file, --tls-cert" + ("" if keyed else "; for clients --api-key-file")
    log.warning(
        "%s:%d is open to the network, and roles are trusted unseen: %swhoever answers at a role's URL sees"
        " prompts (%s)",
        host,
        port,
        clients,
        options,
    )


def parse_peers(
    texts: Mapping[str, Sequence[str]],
) -> tuple[tuple[tuple[EndpointURL, str], ...], tuple[tuple[NamedPeers, str], ...]]:
    """Endpoint URLs and DNS names by role, from arguments that each hold one or several, separated by commas
    or semicolons. ValueError quotes what is neither.
    """
    listed: list[tuple[EndpointURL, str]] = []
    named: list[tuple[NamedPeers, str]] = []
    for role, arguments in texts.items():
        for part in (part.strip() for text in arguments for part in re.split(r"[,;]", text)):
            if part.startswith("dns://"):
                named.append((NamedPeers.parse(part), role))
            elif part:
                listed.append((EndpointURL.parse(part), role))
    return tuple(listed), tuple(named)
