"""Where what the roles compute first differs from the fused pipelines, if it does. All in one process."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from benchmarks.gpu.model import Work
from benchmarks.gpu.pipelines import Modular, Standard, Whole
from services.model import open_model
from services.model.base import RoleModel, Value
from services.role import Role
from transfer.manifest import pack, unpack
from triptych_proto.control_pb2 import Generation

AGAIN, MODULAR, STANDARD, ROUNDED = (
    "the roles once more",
    "WanModularPipeline",
    "WanPipeline",
    "WanPipeline, rounding likewise",
)
KINDS = ("text", "timestep", "latents", "noise", "denoised", "frames")
OF_A_STEP = KINDS[:4]  # what goes into the transformer, and what it makes of that
SEED = 1


@dataclass
class Trace:
    """All that goes into the transformer and comes out of it, into the VAE and out of it, in order."""

    made: list[tuple[str, int, torch.Tensor]] = field(
        default_factory=list
    )  # what, of which call, on the host
    calls: int = 0  # of the transformer: two a step with guidance

    def note(self, kind: str, value: Any) -> None:
        self.made.append((kind, self.calls, value.detach().to("cpu", copy=True)))

    @contextlib.contextmanager
    def of(self, pipeline: Any) -> Iterator[None]:
        """What the modules of ``pipeline`` do meanwhile; a role has not all of them."""

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.calls += 1
            self.note("text", kwargs["encoder_hidden_states"])
            self.note("timestep", kwargs["timestep"])
            self.note("latents", kwargs["hidden_states"])

        hooks = []
        transformer, vae = (getattr(pipeline, name, None) for name in ("transformer", "vae"))
        if isinstance(transformer, torch.nn.Module):
            hooks += [
                transformer.register_forward_pre_hook(before, with_kwargs=True),
                transformer.register_forward_hook(lambda *all: self.note("noise", all[-1][0])),
            ]
        if isinstance(vae, torch.nn.Module):
            first: Any = vae.post_quant_conv
            hooks.append(first.register_forward_pre_hook(lambda _, args: self.note("denoised", args[0])))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def differences(self, other: Trace, calls_per_step: int) -> dict[str, Any]:
        """``first``, and the largest ``difference`` of each kind."""
        assert [(kind, call) for kind, call, _ in self.made] == [(kind, call) for kind, call, _ in other.made]
        first, largest = None, dict.fromkeys(KINDS, 0.0)
        for (kind, call, mine), (_, _, theirs) in zip(self.made, other.made, strict=True):
            if mine.dtype != theirs.dtype:  # torch.equal would round one to the other
                mine, theirs = mine.double(), theirs.double()
            if torch.equal(mine, theirs):
                continue
            if first is None:
                step = (call - 1) // calls_per_step + 1
                first = f"{kind} of step {step}" if kind in OF_A_STEP else kind
            difference = float((mine.double() - theirs.double()).abs().max())
            largest[kind] = max(largest[kind], difference)
        return {"first": first, "difference": largest}

    def frames(self) -> np.ndarray:
        frames: np.ndarray = self.made[-1][2].numpy()
        return frames


class _Quiet:
    def progress(self, step: int, total: int) -> None:
        """Nobody asks."""

    def raise_if_cancelled(self) -> None:
        """It is not."""


def measure(folder: Path, work: Work, device: torch.device, dtype: str) -> Iterator[dict[str, Any]]:
    """Each way against the roles' own; first the memory of each role, as torch counts it."""
    calls_per_step = 2
    fields = work.fields(SEED)
    split, again = Trace(), Trace()
    yield from _run_roles(folder, work, device, dtype, (split, again))

    def record(way: str, trace: Trace) -> dict[str, Any]:
        frames = trace.frames()
        return {
            "part": "equal",
            "way": way,
            "seed": SEED,
            **split.differences(trace, calls_per_step),
            "frames_xxh3": xxhash.xxh3_64(np.ascontiguousarray(frames).data).hexdigest(),
            "frames_std": float(frames.std()),
        }

    yield record(AGAIN, again)
    again.made.clear()
    precision = getattr(torch, dtype)
    modular = Modular(folder, device, precision)
    yield record(MODULAR, _run_whole(modular, fields))
    standard = Standard.of(modular)
    yield record(STANDARD, _run_whole(standard, fields))

    _round_likewise(standard, precision)
    yield record(ROUNDED, _run_whole(standard, fields))


def _round_likewise(standard: Standard, dtype: torch.dtype) -> None:
    """The modular pipeline rounds in other places: timesteps reach the transformer in its dtype, and its
    noise the scheduler in float32.
    """
    scheduler = standard.pipeline.scheduler
    step = scheduler.step
    scheduler.step = lambda noise, *args, **kwargs: step(noise.float(), *args, **kwargs)

    def rounded(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "timestep": kwargs["timestep"].to(dtype)}

    standard.pipeline.transformer.register_forward_pre_hook(rounded, with_kwargs=True)


def _run_whole(whole: Whole, fields: dict[str, Any]) -> Trace:
    trace = Trace()
    with trace.of(whole.pipeline):
        frames = (whole.frames(fields) * 255).round().astype(np.uint8)
    trace.note("frames", torch.from_numpy(frames))
    return trace


def _run_roles(
    folder: Path, work: Work, device: torch.device, dtype: str, traces: tuple[Trace, ...]
) -> Iterator[dict[str, Any]]:
    """One role after the other, as each has a process of its own, and each once for every trace."""
    request = _request(work)
    options: dict[str, Any] = {"device": str(device), "dtype": dtype, "embedding_cache": 0}
    values: list[dict[str, Value]] = [{} for _ in traces]
    for role in Role:
        empty = _memory(device)
        model: Any = open_model(role, str(folder), **options)
        loaded = _memory(device)
        for trace, inputs in zip(traces, values, strict=True):
            with trace.of(model.pipeline):
                made = _run(model, role, request, dict(inputs), trace)
            inputs.clear()
            inputs.update(made)
        if device.type == "cuda":
            yield {
                "part": "role memory",
                "role": role.value,
                "weights_bytes": loaded - empty,
                "run_bytes": torch.cuda.max_memory_allocated(device) - loaded,
                "reserved_bytes": torch.cuda.max_memory_reserved(device) - empty,
            }
        del model


def _run(
    model: RoleModel, role: Role, request: Generation, inputs: dict[str, Value], trace: Trace
) -> dict[str, Value]:
    if role is Role.DECODER:
        frames = np.concatenate(list(model.decode(request, inputs, _Quiet()).frames))
        trace.note("frames", torch.from_numpy(frames))
        return {}
    packed = pack(model.run(request, inputs, _Quiet()))
    payload = memoryview(bytearray(packed.nbytes))
    packed.write_into(payload)
    return unpack(packed.manifest, payload)


def _request(work: Work) -> Generation:
    fields = work.fields(SEED)
    same = ("prompt", "negative_prompt", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed")
    return Generation(width=work.width, height=work.height, **{name: fields[name] for name in same})


def _memory(device: torch.device) -> int:
    """Bytes in use, when what is free is given back; the peak is counted from here on."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
