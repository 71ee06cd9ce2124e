"""``triptych ctl``: look after a running system over its HTTP API."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.client import ClientError, VideoClient
from orchestrator.request_options import DEFAULT_SERVER
from transfer.secrets import read_token

POLL_SECONDS = 0.5
BAR_WIDTH = 32

Action = Callable[[VideoClient, argparse.Namespace], Awaitable[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.set_defaults(server=DEFAULT_SERVER)
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", help="one of these; ACTION --help says more"
    )

    def add(name: str, text: str) -> argparse.ArgumentParser:
        # The same options again: one that is not given after the action leaves what was given before it.
        action = actions.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", argument_default=argparse.SUPPRESS
        )
        _add_common(action)
        return action

    add("peers", "list the roles and what they do")
    drain = add("drain", "ask a role to take no new task, as before its node is taken away")
    drain.add_argument("url", metavar="URL", help="the role's endpoint, as the list of peers has it")
    drain.add_argument(
        "--wait",
        type=float,
        default=None,
        metavar="S",
        help="wait until it has nothing more to do and holds nothing, for at most S seconds",
    )
    timeline = add("timeline", "show where a job's time went, with the attempts in vain")
    timeline.add_argument("id", metavar="ID", help="the job's id")
    delete = add("delete", "stop a job if it runs, and remove it with its file")
    delete.add_argument("id", metavar="ID", help="the job's id")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help=f"the orchestrator (default: {DEFAULT_SERVER})")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the cluster's token, if the orchestrator has one, or an API key",
    )
    parser.add_argument("--json", action="store_true", help="print the server's reply as it is")


def run(args: argparse.Namespace) -> int:
    """The exit code: 0, 1 when the server refused or the wait was in vain, 2 when it could not be asked.

    Errors are one line on stderr.
    """
    try:
        return asyncio.run(_act(args))
    except ClientError as error:
        print(f"triptych ctl: {error}", file=sys.stderr)
        return 2 if error.status is None else 1
    except (OSError, ValueError) as error:
        print(f"triptych ctl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triptych ctl: interrupted", file=sys.stderr)
        return 130


async def _act(args: argparse.Namespace) -> int:
    token = None if args.token_file is None else await asyncio.to_thread(read_token, args.token_file)
    async with VideoClient(args.server, token) as client:
        return await ACTIONS[args.action](client, args)


async def _peers(client: VideoClient, args: argparse.Namespace) -> int:
    reply = await client.peers()
    _show(args, reply, peers_table(reply["data"]))
    return 0


async def _drain(client: VideoClient, args: argparse.Namespace) -> int:
    reply = await client.drain(args.url)
    url = reply["url"]
    _show(args, reply, f"{url} takes no new task")
    if args.wait is None:
        return 0
    deadline = time.monotonic() + args.wait
    while True:
        try:
            busy = _busy((await client.peers())["data"], reply)
        except ClientError as error:
            if not error.transient:
                raise
            busy = str(error)  # the orchestrator may be back in time
        if not busy:
            return 0
        if time.monotonic() >= deadline:
            print(f"triptych ctl: {url} was not empty within {args.wait:g} s: {busy}", file=sys.stderr)
            return 1
        await asyncio.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0)))


def _busy(entries: Sequence[dict[str, Any]], drained: dict[str, Any]) -> str:
    """What the life that was drained still does or holds; nothing if it is empty or gone."""
    entry = next((entry for entry in entries if entry["url"] == drained["url"]), {})
    if not entry.get("incarnation") or entry["incarnation"] != drained["incarnation"]:
        return ""
    slots = sum(pool["slots_in_use"] for pool in entry["pools"])
    if entry["state"] == "draining" and not entry["running"] and not slots:
        return ""
    return f"{entry['state']}, {entry['running']} running, {slots} slots in use"


async def _timeline(client: VideoClient, args: argparse.Namespace) -> int:
    reply = await client.timeline(args.id)
    _show(args, reply, timeline_table(reply))
    return 0


async def _delete(client: VideoClient, args: argparse.Namespace) -> int:
    reply = await client.delete(args.id)
    _show(args, reply, f"{args.id} is deleted")
    return 0


ACTIONS: dict[str, Action] = {"peers": _peers, "drain": _drain, "timeline": _timeline, "delete": _delete}


def _show(args: argparse.Namespace, reply: dict[str, Any], text: str) -> None:
    print(json.dumps(reply, indent=2) if args.json else text, flush=True)


def peers_table(entries: Sequence[dict[str, Any]]) -> str:
    """A line for each peer: pools as free/total, and why a refused one is refused."""
    rows = [("url", "role", "state", "running", "queued", "pools", "model")]
    for entry in entries:
        pools = (
            f"{pool['name']} {_size(pool['free_bytes'])}/{_size(pool['bytes'])}"
            for pool in entry.get("pools", ())
        )
        rows.append(
            (
                entry["url"],
                entry["role"],
                entry["state"],
                str(entry.get("running", "")),
                str(entry.get("queued", "")),
                ", ".join(pools),
                entry.get("model") or entry.get("refusal", ""),
            )
        )
    return _table(rows)


def timeline_table(timeline: dict[str, Any]) -> str:
    """A line for each attempt, durations in seconds.

    The bar is drawn to scale over the job's life: ``.`` ready and waiting for an instance, ``#`` there.
    """
    attempts: list[dict[str, Any]] = timeline["attempts"]
    start = timeline["created_at"]
    moments = [moment for a in attempts for moment in (a["started_at"], a["inputs_at"], a["ended_at"])]
    end = max(
        (moment for moment in (*moments, timeline["completed_at"]) if moment is not None), default=start
    )
    rows = [("stage", "try", "outcome", "queue", "wait", "transfer", "compute", "save", "", "instance")]
    for a in attempts:
        durations = ("queue", "waiting", "transfer", "compute", "save")
        rows.append(
            (
                a["stage"],
                str(a["try"]),
                a["outcome"],
                *(f"{a[f'{name}_seconds']:.3f}" for name in durations),
                _bar(a["queued_at"], a["started_at"], a["ended_at"] or end, start, end),
                f"{a['url']}  {a['reason']}".rstrip(),
            )
        )
    return f"{timeline['id']} is {timeline['status']}, {end - start:.3f} s\n{_table(rows)}"


def _bar(queued: float, started: float, ended: float, start: float, end: float) -> str:
    scale = BAR_WIDTH / max(end - start, 1e-9)
    first, middle, last = (
        min(max(round((moment - start) * scale), 0), BAR_WIDTH) for moment in (queued, started, ended)
    )
    middle = min(middle, BAR_WIDTH - 1)  # what ran, however short, is seen
    running = "#" * max(last - middle, 1)
    return f"|{' ' * min(first, middle)}{'.' * max(middle - first, 0)}{running}".ljust(BAR_WIDTH + 1) + "|"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*rows[1:], strict=True)]
    numeric = numeric or [False] * len(widths)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit() or not cell
