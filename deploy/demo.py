"""``triptych demo``: the whole system for one prompt, as a newcomer's first look."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import av

from deploy.onebox import DEMO_MODEL, OneBox
from orchestrator import generate
from services import model_source

START_SECONDS = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="?", default="a red circle moving right", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        default=str(DEMO_MODEL),
        metavar="DIR",
        help="a diffusers model folder (default: the demo model; it draws a red, green, blue, yellow or white"
        " circle, square or triangle that moves left, right, up, down or not, on dark or light ground)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/demo.mp4"), metavar="FILE", help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """0 only if the file that came back plays; 2: no such model."""
    if reason := model_source.problem(args.model):
        print(f"triptych demo: {reason}", file=sys.stderr)
        return 2
    output: Path = args.output
    output.parent.mkdir(parents=True, exist_ok=True)
    log_path = output.with_suffix(".log")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="triptych-demo-") as scratch, log_path.open("wb") as log:
        model = Path(args.model)
        print(f"model: {model.relative_to(Path.cwd()) if model.is_relative_to(Path.cwd()) else args.model}")
        box = OneBox(args.model, data_dir=Path(scratch) / "data", log=log)
        print(f"starting orchestrator, encoder, denoiser, decoder; their log is {log_path}")
        try:
            with box:
                box.wait_ready(START_SECONDS)
                print(f"ready after {time.monotonic() - started:.1f} s at {box.url}")
                code = generate.run(_generate_arguments(args.prompt, output, box.url))
        except RuntimeError as error:
            print(f"triptych demo: {error}; see {log_path}", file=sys.stderr)
            return 1
    if code != 0:
        return code
    try:
        frames, seconds = decode(output)
    except (av.FFmpegError, ValueError) as error:
        print(f"triptych demo: {output} does not play: {error}", file=sys.stderr)
        return 1
    print(f"checked: {frames} frames, {seconds:.2f} s play")
    return 0


def _generate_arguments(prompt: str, output: Path, server: str) -> argparse.Namespace:
    """What ``triptych generate`` would be told."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(["--output", str(output), "--server", server, "--", prompt])


def decode(path: Path) -> tuple[int, float]:
    """Decodes every frame; returns their count and the seconds. av.FFmpegError if it does not play."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        if count == 0:
            raise ValueError(f"{path} holds no frames")
        rate = stream.average_rate
        return count, float(count / rate) if rate else 0.0
