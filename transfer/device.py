"""Copies between an accelerator and slots: the slots' pages pinned, and streams of the copies' own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Any

import torch

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device of the process
_cuda: Any = torch.cuda  # its stubs are partly untyped

_streams: dict[torch.device, torch.cuda.Stream] = {}
_lock = threading.Lock()  # guards _streams


def pin(memory: memoryview, device: torch.device) -> None:
    """Keeps the pages of ``memory``, which is not empty, where they are, so that ``device`` can read and
    write them by itself: else the driver copies everything once more, through a buffer of its own.

    Raises OSError if it cannot: locked memory may be limited.
    """
    with torch.cuda.device(device):  # without it the call would make a context on device 0
        code = int(_cuda.cudart().cudaHostRegister(_address(memory), memory.nbytes, _PORTABLE))
        if code:
            # CUDA tells the next caller too, who must not be a task.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
            raise OSError(f"cannot pin {memory.nbytes} bytes for {device}: CUDA error {code}")


def unpin(memory: memoryview) -> None:
    """Undoes ``pin``; before the memory is unmapped."""
    _cuda.cudart().cudaHostUnregister(_address(memory))


def download(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copies tensors of devices over tensors in host memory of the same shape and dtype, (host, device) each.

    Blocks until the bytes are there. The tensors of the devices must be computed: a copy on a stream of its
    own does not wait for what was queued after them, nor would it wait for them.
    """
    by_device: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for host, source in pairs:
        by_device.setdefault(source.device, []).append((host, source))
    for device, found in by_device.items():
        if device.type != "cuda":
            for host, source in found:
                host.copy_(source)
            continue
        stream = _stream(device)
        with torch.cuda.stream(stream):
            for host, source in found:
                host.copy_(source, non_blocking=True)
        stream.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    with _lock:
        if device not in _streams:
            _streams[device] = _cuda.Stream(device)
        return _streams[device]


def _address(memory: memoryview) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
