"""``triptych generate``: a prompt in, a file out, and where the time went."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.client import ClientError, Video, VideoClient
from orchestrator.request_options import add_field_arguments, add_server_arguments, fields
from transfer.secrets import read_token

BAR_WIDTH = 30
CLEAN_UP_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out.mp4"), help="file (default: %(default)s)"
    )
    add_server_arguments(parser)
    add_field_arguments(parser)
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a reference image (PNG, JPEG or WebP), for models that take one; can be repeated",
    )
    parser.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="seconds to wait (default: %(default)g)"
    )


def run(args: argparse.Namespace) -> int:
    """The exit code: 0, 1 for an error (one line on stderr), 130 after Ctrl-C (which deletes the job)."""
    try:
        asyncio.run(_generate(args))
    except (ClientError, OSError, ValueError) as error:
        print(f"triptych generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("triptych generate: interrupted", file=sys.stderr)
        return 130
    return 0


async def _generate(args: argparse.Namespace) -> None:
    # Before minutes are spent on a video that cannot be saved.
    await asyncio.to_thread(args.output.parent.mkdir, parents=True, exist_ok=True)
    key = None if args.api_key_file is None else await asyncio.to_thread(read_token, args.api_key_file)
    images = [await asyncio.to_thread(path.read_bytes) for path in args.image]
    async with VideoClient(args.server, key) as client:
        video = await client.create(images=images, prompt=args.prompt, **fields(args))
        progress = _Progress()
        try:
            video = await client.wait(video["id"], timeout=args.timeout, on_progress=progress.show)
        except BaseException:
            await _delete(client, video["id"])  # no one waits for it any more
            raise
        finally:
            progress.end()
        if video["status"] == "failed":
            error = video["error"] or {}
            raise ClientError(f"{video['id']} failed: {error.get('message')}", code=error.get("code"))
        await client.download(video["id"], args.output, timeout=args.timeout)
    print(summary(video, args.output))


async def _delete(client: VideoClient, video_id: str) -> None:
    try:
        await asyncio.wait_for(client.delete(video_id), CLEAN_UP_SECONDS)
    except (ClientError, asyncio.TimeoutError) as error:
        if getattr(error, "status", None) == 404:
            return
        print(f"triptych generate: could not delete {video_id}: {error}", file=sys.stderr)


def summary(video: Video, path: Path) -> str:
    """The file, what is in it, and a table of phases in seconds."""
    lines = [
        f"{path}: {video['size']}, {video['num_frames']} frames, {video['fps']:g} fps, seed {video['seed']}"
    ]
    phases: list[dict[str, Any]] = video["phases"]
    total = sum(phase["seconds"] for phase in phases)
    for phase in phases:
        share = phase["seconds"] / total if total > 0 else 0.0
        lines.append(
            f"  {phase['name']:<10}{phase['seconds']:9.3f} s {share:5.0%}  {phase.get('url', '')}".rstrip()
        )
    if phases:
        lines.append(f"  {'total':<10}{total:9.3f} s")
    return "\n".join(lines)


class _Progress:
    """A bar that is drawn again on a terminal; elsewhere a line for each new state and tenth."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar = sys.stderr.isatty()
        self._shown: tuple[str, int] | None = None

    def show(self, video: Video) -> None:
        status, percent = str(video["status"]), int(video["progress"])
        elapsed = time.monotonic() - self._start
        if self._bar:
            bar = "#" * (percent * BAR_WIDTH // 100)
            print(
                f"\r[{bar:<{BAR_WIDTH}}] {percent:3d}% {elapsed:6.1f} s  {status:<12}",
                end="",
                file=sys.stderr,
            )
        elif self._shown != (status, percent // 10):
            print(f"{video['id']} {status} {percent}% after {elapsed:.1f} s", file=sys.stderr)
        self._shown = (status, percent // 10)

    def end(self) -> None:
        if self._bar and self._shown is not None:
            print(file=sys.stderr)
