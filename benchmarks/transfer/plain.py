"""The peers to compare with, as one writes them without slots and checks: plain ZeroMQ, plain Mooncake."""

import importlib
import os
import time
from typing import Any

import torch
import zmq

from benchmarks.transfer.buffers import view
from transfer import memory

HOST = "127.0.0.1"


class ZmqReceiver:
    """Takes one message for each tensor and copies it to its destination."""

    def __init__(self, timeout: float) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(timeout * 1000))
        self.address = f"tcp://{HOST}:{self._socket.bind_to_random_port(f'tcp://{HOST}')}"

    def receive(self, target: torch.Tensor) -> float:
        """Returns when the bytes are in `target`: then, on the clock of `time.monotonic`."""
        frame = self._socket.recv(copy=False)
        memory.copy(view(target), frame.buffer)
        return time.monotonic()

    def close(self) -> None:
        self._context.destroy()


class ZmqSender:
    """Sends a tensor as one message that is not copied before."""

    def __init__(self, address: str, timeout: float) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, int(timeout * 1000))
        self._socket.connect(address)

    def send(self, source: torch.Tensor) -> float:
        """Returns when it began: sending goes on."""
        started = time.monotonic()
        self._socket.send(view(source), copy=False)
        return started

    def close(self) -> None:
        self._context.destroy()


class Mooncake:
    """A Transfer Engine over TCP, and a region of memory that it knows."""

    def __init__(self, known: torch.Tensor) -> None:
        # Mooncake reads its settings when it is loaded.
        os.environ.update(MC_FORCE_TCP="1", MC_LOG_LEVEL="ERROR")
        self._engine: Any = importlib.import_module("mooncake.engine").TransferEngine()
        self._known = known
        if self._engine.initialize(HOST, "P2PHANDSHAKE", "tcp", ""):
            raise OSError(f"mooncake cannot start on {HOST}")
        if self._engine.register_memory(known.data_ptr(), known.nbytes):
            raise OSError(f"mooncake cannot register {known.nbytes} bytes")
        self.session = f"{HOST}:{self._engine.get_rpc_port()}"

    def write(self, session: str, source: torch.Tensor, target: int) -> float:
        """Writes to an address in the peer; the seconds until Mooncake says that the bytes are there."""
        started = time.monotonic()
        if self._engine.transfer_sync_write(session, source.data_ptr(), target, source.nbytes):
            raise OSError(f"mooncake cannot write {source.nbytes} bytes to {session}")
        return time.monotonic() - started

    def close(self) -> None:
        self._engine = None  # ends its threads, before the memory that they know can go
