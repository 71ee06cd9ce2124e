"""Outputs of text encoders that were computed before, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from services.model.base import CacheStats

Made = TypeVar("Made")
Key = tuple[Hashable, int]  # and the bytes it takes up


@dataclass(frozen=True)
class _Kept:
    """A tensor of our own, in host memory, and the device it came from."""

    tensor: torch.Tensor
    device: torch.device


@dataclass(frozen=True)
class _Entry:
    values: Any
    nbytes: int


class EmbeddingCache:
    """Least recently used entries go first. Keys and tensors count, the few objects around them do not.

    Entries lie in host memory: accelerators have less, and what a role hands on goes through it anyway.
    Nobody else sees an entry's memory: tensors are copied on their way in, and again on their way out.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0
        # One run computes at a time, but statistics are asked for meanwhile, on another thread.
        self._lock = threading.Lock()

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(self._entries),
                bytes=self._bytes,
                limit_bytes=self._limit,
            )

    def computed(self, key: Key, compute: Callable[[], Made]) -> Made:
        """What ``compute`` returned for an equal key, or what it returns now: tensors, and tuples, lists and
        dicts of them and of what never changes.
        """
        name, key_bytes = key
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                self._misses += 1
            else:
                self._hits += 1
                self._entries.move_to_end(name)
        if entry is not None:
            found: Made = _map(entry.values, _restored)
            return found
        made = compute()
        nbytes = key_bytes + _nbytes(made)
        if nbytes <= self._limit:  # one that is larger must not drive out all others for nothing
            self._put(name, _Entry(_map(made, _kept), nbytes))
        return made

    def _put(self, name: Hashable, entry: _Entry) -> None:
        with self._lock:
            replaced = self._entries.pop(name, None)
            if replaced is not None:
                self._bytes -= replaced.nbytes
            while self._bytes + entry.nbytes > self._limit:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= oldest.nbytes
                self._evictions += 1
            self._entries[name] = entry
            self._bytes += entry.nbytes


def key_of(*values: Any) -> Key:
    """Equal for equal values of equal types, tensors compared bit for bit. TypeError for what has no key."""
    frozen = _frozen(values)
    return frozen, _frozen_bytes(frozen)


def _frozen(value: Any) -> Hashable:
    # The type goes along: True == 1 == 1.0.
    if isinstance(value, torch.Tensor):
        data = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return torch.Tensor, value.dtype, tuple(value.shape), value.device, data
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return dict, tuple((name, _frozen(value[name])) for name in sorted(value))
    if value is None or isinstance(value, (str, int, bool, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, float):
        return float, value.hex()  # 0.0 == -0.0
    raise TypeError(f"a {type(value).__name__} has no key")


def _frozen_bytes(frozen: Hashable) -> int:
    if isinstance(frozen, tuple):
        return sum(map(_frozen_bytes, frozen))
    if isinstance(frozen, bytes):
        return len(frozen)
    return len(frozen.encode("utf-8", "surrogatepass")) if isinstance(frozen, str) else 0


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: _map(item, change) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    return change(value)


def _kept(value: Any) -> Any:
    return _Kept(value.to("cpu", copy=True), value.device) if isinstance(value, torch.Tensor) else value


def _restored(value: Any) -> Any:
    return value.tensor.to(value.device, copy=True) if isinstance(value, _Kept) else value


def _nbytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_nbytes, value))
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
