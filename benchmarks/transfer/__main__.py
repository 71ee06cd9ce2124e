"""`python -m benchmarks.transfer`: one hop by every engine, beside a memcpy and plain peers."""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import re
import statistics
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TextIO

import zmq

from benchmarks import machine
from benchmarks.transfer.buffers import Rotation
from benchmarks.transfer.cell import Cell, setup_costs, size_name, table
from benchmarks.transfer.rows import ENGINES, FLOOR, PLAIN_MOONCAKE, PLAIN_ZMQ, Sample, open_bench
from transfer.errors import TransferError

NAMES = (*ENGINES, PLAIN_ZMQ, PLAIN_MOONCAKE)
SIZES = (10**3, 10**6, 4 * 10**6, 16 * 10**6, 42 * 10**6, 100 * 10**6, 256 * 10**6)
QUICK_SIZES = (10**3, 10**6)
SHORT_SIZES = (10**3, 4 * 10**6, 42 * 10**6)
ROUNDS, SHORT_ROUNDS, QUICK_ROUNDS = 21, 7, 3
# Rounds before those that count: connections, mappings, code, and large buffers' pages once around.
WARM_UP, MOST_WARM_UP = 2, 16
PACKAGES = (
    "torch",
    "pyzmq",
    "mooncake-transfer-engine-non-cuda",
    "mooncake-transfer-engine",
    "mooncake-transfer-engine-cuda13",
)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    args = _parser().parse_args(arguments)
    names = args.engines or [name for name in NAMES if _installed(name)]
    if missing := [name for name in names if not _installed(name)]:
        print(f"benchmarks.transfer: {', '.join(missing)}: Mooncake is not installed", file=sys.stderr)
        return 2
    sizes = args.sizes or (QUICK_SIZES if args.quick else SHORT_SIZES if args.short else SIZES)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else SHORT_ROUNDS if args.short else ROUNDS)
    cold_bytes = 0 if args.quick else max(machine.cache_bytes(), max(sizes))
    try:
        with args.json.open("w") if args.json else contextlib.nullcontext() as lines:
            asyncio.run(_run(names, sizes, rounds, cold_bytes, lines))
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, TransferError) as error:
        print(f"benchmarks.transfer: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(
    names: Sequence[str], sizes: Sequence[int], rounds: int, cold_bytes: int, lines: TextIO | None
) -> None:
    facts = machine.facts(PACKAGES)
    facts["versions"]["libzmq"] = zmq.zmq_version()
    print(_describe(facts, rounds), flush=True)
    cells: list[Cell] = []
    others = machine.Others()
    try:
        async with contextlib.aclosing(_measure(names, sizes, rounds, cold_bytes)) as measured:
            async for cell in measured:
                cells.append(cell)
                if lines:
                    seen = {"cores_used_by_others": others.cores()}  # up to now
                    print(json.dumps({**cell.record(), **seen, **facts}), file=lines, flush=True)
    finally:  # a run that fails or is stopped shows what it has
        if cells:
            _show(cells)
            print(f"Other processes used {others.cores():.2f} cores meanwhile", flush=True)


async def _measure(
    names: Sequence[str], sizes: Sequence[int], rounds: int, cold_bytes: int
) -> AsyncGenerator[Cell, None]:
    """One way after the other in each round, so that what disturbs the machine disturbs all alike."""
    rotations = [Rotation.over(nbytes, cold_bytes) for nbytes in sizes]
    async with open_bench(names, rotations) as bench:
        for rotation in rotations:
            await bench.turn_to(rotation)
            samples: dict[str, list[Sample]] = {name: [] for name in (FLOOR, *names)}
            turn = 0
            for taken in range(-min(max(WARM_UP, rotation.count), MOST_WARM_UP), rounds):
                for name, kept in samples.items():
                    sample = await bench.rows[name](turn)
                    turn += 1
                    if taken >= 0:
                        kept.append(sample)
            floor = statistics.median(sample.total for sample in samples[FLOOR])
            for name, kept in samples.items():
                yield Cell.of(name, rotation.nbytes, kept, floor)


def _show(cells: Sequence[Cell]) -> None:
    print(f"\n{table(cells)}\n")
    smallest = size_name(min(cell.nbytes for cell in cells))
    costs = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in setup_costs(cells).items())
    print(f"Cost of a hop whatever its size ({smallest}, less its memcpy): {costs}", flush=True)


def _describe(facts: dict[str, object], rounds: int) -> str:
    return "\n".join(f"{name}: {value}" for name, value in {**facts, "rounds": rounds}.items())


def _installed(name: str) -> bool:
    return "mooncake" not in name or importlib.util.find_spec("mooncake") is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description="Measures one hop of the data plane."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each result as a line of JSON")
    parser.add_argument("--sizes", type=_size, nargs="+", metavar="SIZE", help="such as 1KB 42MB (decimal)")
    parser.add_argument("--rounds", type=_rounds, metavar="N", help=f"how often each (default: {ROUNDS})")
    parser.add_argument("--engines", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--short", action="store_true", help="fewer sizes and rounds, within a minute")
    effort.add_argument("--quick", action="store_true", help="see that it runs: few, small, caches warm")
    return parser


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMG]?B?)", text.upper())
    if match is None or match[2] not in _UNITS or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected one such as 1KB or 42MB")
    return int(match[1]) * _UNITS[match[2]]


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 2 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
