"""The decoder: latents to a media file. Runs the VAE and the video encoder."""

from __future__ import annotations

import argparse

from services import options
from services.role import Role


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, Role.DECODER)


def run(args: argparse.Namespace) -> int:
    from services import main  # imports torch: --help need not wait for it

    return main.run(Role.DECODER, args)
