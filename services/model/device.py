"""Computing on an accelerator: when a run is over, and what becomes of the errors that only devices have."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

import torch

from services.model.base import DeviceLost, OutOfMemory

GIB = 1 << 30
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")


@contextlib.contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """A run on ``device``, on the calling thread: at the end all of it is computed.

    Raises OutOfMemory with the memory of the run given back, and DeviceLost when this process can use the
    device no more.
    """
    if device.type == "cuda" and device.index is not None:
        # For kernels that are launched on the current device, wherever their tensors lie. It is a thread's
        # own, and threads of a pool come to their first run with device 0.
        torch.cuda.set_device(device)
    try:
        yield
        settle(device)
    except torch.OutOfMemoryError as error:
        reason = _why(error, device)
        # Its frames hold the tensors of the run, and some of them hold the error: as a cycle they would stay
        # until the collector comes by, which knows nothing of a device's memory.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        _give_back(device)
        raise OutOfMemory(reason) from None
    except torch.AcceleratorError as error:
        # What a kernel did wrong is reported to every later call in this process.
        raise DeviceLost(f"{device}: {str(error).partition(chr(10))[0]}") from error


def settle(device: torch.device) -> None:
    """Waits until what this thread asked of ``device`` is computed.

    Calls return when work is queued. Without this a step would count as done, a stage as measured and an
    output as there while the device is at work on something earlier.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _why(error: torch.OutOfMemoryError, device: torch.device) -> str:
    """One line of torch's many."""
    asked = _ASKED.search(str(error))
    tried = f"; {asked[1]} more were asked for" if asked else ""
    if device.type != "cuda":
        return f"{device} has too little memory for this request{tried}"
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    return (
        f"{device} has too little memory for this request{tried}: of {total / GIB:.1f} GiB {free / GIB:.1f}"
        f" are free, this role has {used / GIB:.1f} in use"
    )


def _give_back(device: torch.device) -> None:
    """What is cached for later runs too: another role on the same device may need it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
