"""The ``triptych`` command: dispatches to the package that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

# Modules are imported when their command is used: --help must not wait for torch.
COMMANDS = {
    "up": ("deploy.onebox", "the whole system on this machine, in the foreground"),
    "generate": ("orchestrator.generate", "send a prompt to a running system and save the video"),
    "bench": ("orchestrator.bench.command", "put load on a running system, and say how long its videos take"),
    "ctl": ("orchestrator.ctl", "look after a running system: its peers, and where a job's time went"),
    "orchestrator": ("orchestrator.main", "the HTTP endpoint that routes requests through the roles"),
    "encoder": ("services.encoder", "one encoder: prompt to embeddings"),
    "denoiser": ("services.denoiser", "one denoiser: embeddings to latents"),
    "decoder": ("services.decoder", "one decoder: latents to a video file"),
    "keys": ("deploy.keys", "make the key file that the roles of a cluster share"),
    "demo": ("deploy.demo", "start everything, generate one video, check that it plays, stop"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="triptych",
        description="Disaggregated serving of diffusion models.",
        epilog="See docs/ for more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", add_help=name in arguments[:1]
        )
        if arguments[:1] == [name]:
            loaded = import_module(module)
            loaded.add_arguments(command)
            command.set_defaults(run=loaded.run)
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
