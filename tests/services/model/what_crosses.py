"""What a model's blocks hand from encoder to denoiser to decoder: what a row for its family has to know.

``python -m tests.services.model.what_crosses FOLDER PIPELINE``, the latter a modular pipeline's class.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from services.model.split import cut_after, split
from services.role import Role
from tests.services.model.fused import Fused
from tests.services.model.support import generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pipeline", help="for example Flux2KleinModularPipeline")
    parser.add_argument("--image", action="store_true", help="with a reference image")
    parser.add_argument("--num-frames", type=int, default=9, help="(default: %(default)s)")
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, args.pipeline)
    parts = split(getattr(diffusers, pipeline.default_blocks_name)())
    images = [Image.new("RGB", (96, 64), "teal")] if args.image else []
    request = generation(num_frames=args.num_frames)
    told = {field.name for field in request.DESCRIPTOR.fields} | {"frame_rate", "output_type"}
    recording = Fused(args.folder, args.pipeline).run(request, {}, images)
    for title, state, role in (
        ("encoder to denoiser", recording.encoded, Role.ENCODER),
        ("denoiser to decoder", recording.denoised, Role.DENOISER),
    ):
        cut = cut_after(parts, role)
        show(title, {name: state[name] for name in state.keys() & (cut.names - told)}, cut.required)
    made = recording.made
    show("from the decoder", {name: made[name] for name in made.keys() & {"images", "videos", "audio"}})


def show(title: str, values: dict[str, Any], required: Collection[str] = ()) -> None:
    print(f"{title}:")
    for name in sorted(values):
        if values[name] is not None:
            print(f"  {name}{'*' if name in required else ''}: {described(values[name])}")


def described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
    if isinstance(value, torch.Generator):
        return "its state"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(map(described, value))}"
    return f"{type(value).__name__}{value.shape}" if hasattr(value, "shape") else repr(value)


if __name__ == "__main__":
    main()
