"""A hop between two roles on one host: device, slot, slot, device; and what of it is whose."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.model import Work
from services.model.device import settle
from transfer.endpoint import TransferEndpoint
from transfer.manifest import pack
from transfer.pool import arena_bytes
from transfer.urls import EndpointURL

SENDER, RECEIVER = (EndpointURL.parse(f"grpc://127.0.0.1:{port}") for port in (30101, 30102))
TIMEOUT = 60.0
BUSY_PRODUCTS = 200  # of 8192 x 8192 in bfloat16: some 0.3 s of an H100


@dataclass(frozen=True)
class Hop:
    """Seconds of one."""

    put: float  # device to the sender's slot
    fetch: float  # the sender's slot to the receiver's
    upload: float  # the receiver's slot to device

    @property
    def total(self) -> float:
        return self.put + self.fetch + self.upload


def measure(work: Work, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Both hops of a request, with pinned slots and without; and the first half beside a busy device."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for name, values in work.crossing(dtype, device).items():
        yield {"part": "hop", "what": name, "slots": "none", **_bare(values, device, rounds)}
        for pinned in (True, False) if device.type == "cuda" else (False,):
            place = device if pinned else None
            hops = asyncio.run(_hops(values, device, place, rounds))
            yield {
                "part": "hop",
                "what": name,
                "slots": "pinned" if pinned else "pageable",
                "bytes": pack(values).nbytes,
                **{
                    part: median(getattr(hop, part) for hop in hops)
                    for part in ("put", "fetch", "upload", "total")
                },
            }
        if device.type == "cuda":
            hops = asyncio.run(_hops(values, device, device, 3, lambda: _keep_busy(device)))
            yield {
                "part": "hop",
                "what": name,
                "slots": "pinned, device busy",
                "bytes": pack(values).nbytes,
                "put": median(hop.put for hop in hops),
                "busy": _busy_seconds(device),
            }


def _bare(values: dict[str, torch.Tensor], device: torch.device, rounds: int) -> dict[str, Any]:
    """The floor: from the device into pinned memory and back, by the plainest calls there are."""
    pinned = device.type == "cuda"
    host = {name: torch.empty(v.shape, dtype=v.dtype, pin_memory=pinned) for name, v in values.items()}
    down, up = [], []
    for _ in range(rounds + 1):
        started = time.monotonic()
        for name, value in values.items():
            host[name].copy_(value, non_blocking=pinned)
        settle(device)
        middle = time.monotonic()
        for name, value in values.items():
            value.copy_(host[name], non_blocking=pinned)
        settle(device)
        down.append(middle - started)
        up.append(time.monotonic() - middle)
    nbytes = sum(value.nbytes for value in values.values())
    put, upload = median(down[1:]), median(up[1:])
    return {"bytes": nbytes, "put": put, "upload": upload, "total": put + upload}


async def _hops(
    values: dict[str, torch.Tensor],
    device: torch.device,
    pinned_for: torch.device | None,
    rounds: int,
    prepare: Callable[[], None] = lambda: None,
) -> list[Hop]:
    """The first, which warms up, is left out."""
    nbytes = arena_bytes(2, pack(values).nbytes)
    ours, theirs = secrets.token_hex(8), secrets.token_hex(8)
    sender = await TransferEndpoint.start(SENDER, ours, nbytes, 1, ("shm",), device=pinned_for)
    try:
        receiver = await TransferEndpoint.start(RECEIVER, theirs, 1, nbytes, ("shm",), device=pinned_for)
        try:
            hops = []
            for _ in range(rounds + 1):
                prepare()
                hops.append(await _hop(values, device, sender, ours, receiver))
                settle(device)
            return hops[1:]
        finally:
            await receiver.close()
    finally:
        await sender.close()


async def _hop(
    values: dict[str, torch.Tensor],
    device: torch.device,
    sender: TransferEndpoint,
    incarnation: str,
    receiver: TransferEndpoint,
) -> Hop:
    started = time.monotonic()
    held = await sender.put(values, TIMEOUT)
    put = time.monotonic()
    received = await receiver.fetch(SENDER, incarnation, sender.addresses, held.location, TIMEOUT)
    fetched = time.monotonic()
    arrived = {name: _tensor(received.values[name]).to(device, copy=True) for name in values}
    settle(device)
    uploaded = time.monotonic()
    for name, value in values.items():
        if not torch.equal(arrived[name].view(torch.uint8), value.view(torch.uint8)):
            raise RuntimeError(f"{name} arrived other than it was sent")
    received.release()
    held.release()
    return Hop(put - started, fetched - put, uploaded - fetched)


def _tensor(value: Any) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value


def _keep_busy(device: torch.device) -> None:
    """Queues work where a role computes, and returns before it is done."""
    operand = torch.ones(8192, 8192, dtype=torch.bfloat16, device=device)
    for _ in range(BUSY_PRODUCTS):
        operand @ operand


def _busy_seconds(device: torch.device) -> float:
    settle(device)
    started = time.monotonic()
    _keep_busy(device)
    settle(device)
    return time.monotonic() - started
