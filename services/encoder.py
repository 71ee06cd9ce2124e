"""The encoder: prompts to embeddings. Runs text encoders."""

from __future__ import annotations

import argparse

from services import options
from services.role import Role


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser, Role.ENCODER)


def run(args: argparse.Namespace) -> int:
    from services import main  # imports torch: --help need not wait for it

    return main.run(Role.ENCODER, args)
