"""`python -m benchmarks.gpu`: real shapes with random weights on a GPU, split against fused."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks import machine
from benchmarks.gpu import device, equal, fused, hop, model, report, split
from benchmarks.gpu.model import Work

PARTS = ("hop", "standard", "fused", "split", "equal")
PACKAGES = ("accelerate", "av", "diffusers", "grpcio", "torch", "transformers")
ROUNDS, SMALL_ROUNDS = 3, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 if something did not work, after what did is printed."""
    args = _parser().parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    place = torch.device(args.device)
    if place.type == "cpu" and not args.small:
        print("benchmarks.gpu: there is no GPU here; --small runs without one", file=sys.stderr)
        return 2
    work = model.SMALL if args.small else model.FULL
    work = replace(work, steps=args.steps or work.steps)
    rounds = args.rounds or (SMALL_ROUNDS if args.small else ROUNDS)
    facts = {**machine.facts(PACKAGES), **device.facts(place), "small": args.small, "steps": work.steps}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    records: list[dict[str, Any]] = []
    try:
        with args.json.open("w") if args.json else contextlib.nullcontext() as lines:
            for record in _records(args, work, place, rounds):
                records.append(record)
                _tell(record, facts, lines)
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError) as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 1
    finally:  # a run that fails or is stopped shows what it has
        print(f"\n{report.tables(records, work)}", flush=True)
    return 0


def _records(
    args: argparse.Namespace, work: Work, place: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    parts = args.parts or PARTS
    if "hop" in parts:
        yield from hop.measure(work, place, args.hop_rounds)
        _leave(place)
    if set(parts) <= {"hop"}:
        return
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as scratch:
        folder = args.folder or Path(scratch) / "model"
        if not (folder / "model_index.json").is_file():
            started = time.monotonic()
            _build(folder, args.small, place)
            yield {"part": "build", "seconds": time.monotonic() - started}
            _leave(place)
        for part in fused.PIPELINES:
            if part in parts:
                yield from _fused(part, folder, work, args.device, rounds, Path(scratch))
        if "split" in parts:
            yield from split.measure(folder, work, args.device, rounds)
        if "equal" in parts:
            yield from equal.measure(folder, work, place, "float32" if place.type == "cpu" else "bfloat16")


def _build(folder: Path, small: bool, place: torch.device) -> None:
    if small:
        model.build_small(folder)
    else:
        model.build(folder, place, torch.bfloat16)


def _leave(place: torch.device) -> None:
    """The processes that follow need the memory."""
    if place.type == "cuda":
        torch.cuda.empty_cache()


def _fused(
    part: str, folder: Path, work: Work, place: str, rounds: int, scratch: Path
) -> Iterator[dict[str, Any]]:
    """As ``split.measure``."""
    before = device.memory_in_use()
    started = time.monotonic()
    with fused.running(folder, place, part) as whole:
        loaded = whole.answer()
        yield {"part": f"{part} load", "seconds": time.monotonic() - started, **loaded}
        whole.generate({**work.fields(0), "num_inference_steps": 1}, scratch / "fused.mp4")
        answer: dict[str, Any] = {}
        for seed in range(1, rounds + 1):
            answer = whole.generate(work.fields(seed), scratch / "fused.mp4")
            yield {"part": part, "seed": seed, **answer}
        yield {
            "part": f"{part} memory",
            "gpu_bytes": device.memory_of({whole.pid}).get(whole.pid),
            "gpu_bytes_in_all": device.memory_in_use() - before,
            "allocated_bytes": answer.get("allocated_bytes"),
        }


def _tell(record: dict[str, Any], facts: dict[str, Any], lines: TextIO | None) -> None:
    print(json.dumps(record), flush=True)
    if lines:
        print(json.dumps({"benchmark": "gpu", **record, **facts}), file=lines, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Wan 2.1 T2V 1.3B with random weights, 832x480, 81 frames: on one GPU.",
    )
    add = parser.add_argument
    add(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    add("--device", default="auto", help="cuda:0, ... (default: the first GPU)")
    add("--json", type=Path, metavar="FILE", help="write each result as a line of JSON")
    add("--folder", type=Path, metavar="DIR", help="where the model is kept (default: made anew, 13.7 GiB)")
    add(
        "--steps",
        type=_whole,
        metavar="N",
        help=f"denoising steps of a request (default: {model.FULL.steps})",
    )
    add("--rounds", type=_whole, metavar="N", help=f"requests, after a warm-up (default: {ROUNDS})")
    add("--hop-rounds", type=_whole, default=20, metavar="N", help="(default: %(default)s)")
    add(
        "--small",
        action="store_true",
        help="see that it runs: a tiny model and few tiny frames, also on a CPU",
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
