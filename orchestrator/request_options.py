"""Options of the command line that become fields of a request, for every command that sends one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_SERVER = "http://127.0.0.1:30010"

# Sent as fields of the request when they are given.
FIELDS = (
    "model",
    "size",
    "num_frames",
    "seconds",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "seed",
    "priority",
)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and the key that it may want."""
    parser.add_argument("--server", default=DEFAULT_SERVER, metavar="URL", help="(default: %(default)s)")
    # A file, since what stands on a command line shows in the list of processes.
    help_text = "the key, if the server wants one: one word"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=help_text)


def add_field_arguments(parser: argparse.ArgumentParser) -> None:
    """What the request asks for, but for its prompt and its images."""
    parser.add_argument("--model", help="one of those that the server lists")
    parser.add_argument("--size", metavar="WxH", help="for example 832x480")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--num-frames", type=int, metavar="N", help="length in frames")
    length.add_argument("--seconds", type=float, metavar="S", help="length in seconds")
    parser.add_argument("--fps", type=float, metavar="F", help="frames per second")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N", help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="how closely to follow the prompt")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what the video does not show")
    parser.add_argument("--seed", type=int, help="the same seed gives the same video")
    parser.add_argument("--priority", type=int, metavar="N", help="-10 to 10; higher goes first (default: 0)")


def fields(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
