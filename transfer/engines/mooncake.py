"""Mooncake's Transfer Engine: reads slots one-sidedly over RDMA or TCP, on networks that are trusted.

Mooncake (github.com/kvcache-ai/Mooncake) reads by raw address whatever its peer has registered, so an
address names the session, the life of the process and where its arenas lie; generations of two lives do
not meet either (`transfer.pool`). Its Python package has no submit for single reads; a batch of one by
`batch_transfer_async_read`, polled by `transfer_check_status`, is the same, and neither spins nor ends by
a time-out of Mooncake's own.

A transfer cannot be recalled: what a frozen peer was asked for lands when it wakes. So Mooncake never
sees the reader's memory. It writes into staging blocks of ours, each of which belongs to a thread that
does nothing else with it until Mooncake has reported the end of the transfer: over TCP its last socket
operation, over RDMA its work completion. The thread then copies the block to the reader, unless that has
given up. A read given up on thus holds a block back, in quarantine, and when too many do reads are refused.
The checksum is taken of the reader's copy, which only this engine writes.
"""

import contextlib
import ctypes
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future, TimeoutError
from dataclasses import dataclass
from typing import Any

import xxhash

from transfer import memory
from transfer.arena import Arena
from transfer.engines.base import Source
from transfer.engines.mooncake_setup import MooncakeOptions, initialize
from transfer.errors import Corrupt, PeerUnreachable, ReadTimeout, SlotGone
from transfer.header import HEADER_BYTES
from transfer.pool import Pool

__all__ = ["MooncakeEngine", "MooncakeOptions"]

BLOCKS = 16
BLOCK_BYTES = 4 << 20
FIRST_BYTES = 1 << 16  # of a slot: small, since it is asked for before the slot is known to be there
WINDOW = 4  # blocks one read uses at a time; Mooncake has four connections to a peer
MAX_WAITING = 256  # parts of reads that wait for a block
CLOSE_SECONDS = 2.0

_POLL_SECONDS, _POLL_SECONDS_MAX = 50e-6, 1e-3
_COMPLETED, _FAILED = 1, -1  # the states that end a transfer; asked once more, Mooncake reads freed memory

_ADDRESS = re.compile(r"mooncake://(?P<session>[^/]+:\d+)/(?P<incarnation>[^/?]+)\?(?P<arenas>.*)")
_ARENA = re.compile(r"(?P<name>[^@&]+)@(?P<start>[0-9a-f]{1,12})\+(?P<nbytes>[0-9a-f]{1,12})")


class MooncakeEngine:
    """Serves and reads slots with one Transfer Engine, as `Engine` says."""

    name = "mooncake"
    checks_payload = True
    scope = ""

    def __init__(self, incarnation: str, host: str, options: MooncakeOptions) -> None:
        """Peers dial `host`, at a port that Mooncake chooses between 15000 and 17000.

        Raises ValueError for a wildcard, OSError for an IPv6 address.
        """
        if host in ("0.0.0.0", "::", "*", ""):
            raise ValueError(f"host {host!r} is not an address that peers can dial: advertise one")
        if ":" in host:
            raise OSError(f"mooncake needs a name or an IPv4 address, not {host}")
        self.address = ""
        self._incarnation = incarnation
        self._host = host
        self._options = options
        self._mooncake: Any = None
        self._exposed: list[memoryview] = []
        self._staging = memoryview(b"")
        self._jobs: queue.Queue[_Job | None] = queue.Queue(MAX_WAITING)
        self._threads: list[threading.Thread] = []
        self.busy_blocks = 0  # in use or in quarantine
        self._lock = threading.Lock()  # guards busy_blocks, _wanted and _closed
        self._wanted: set[Future[None]] = set()
        self._closed = False

    def start(self, pools: Mapping[str, Pool]) -> None:
        self._mooncake = initialize(self._host, self._options)
        arena = Arena("staging", BLOCKS * BLOCK_BYTES)
        self._staging = arena.memory
        arena.close()
        if self._options.protocol == "rdma":  # TCP needs no registration, which would show it to peers
            self._register("staging", self._staging)
        arenas = []
        for name, pool in pools.items():
            arenas.append(f"{name}@{_address(pool.arena.memory):x}+{pool.arena.nbytes:x}")
            self._register(name, pool.arena.memory)
            self._exposed.append(pool.arena.memory)
        session = f"{self._host}:{self._mooncake.get_rpc_port()}"
        self.address = f"mooncake://{session}/{self._incarnation}?{'&'.join(arenas)}"
        for start in range(0, BLOCKS * BLOCK_BYTES, BLOCK_BYTES):
            block = self._staging[start : start + BLOCK_BYTES]
            self._threads.append(
                threading.Thread(target=self._pull, args=(block,), name="mooncake-block", daemon=True)
            )
            self._threads[-1].start()

    def read(self, source: Source, into: memoryview, deadline: float) -> None:
        if into.nbytes != source.location.length:
            raise ValueError(f"{source}: {source.location.length} bytes do not fill {into.nbytes}")
        session, slot = _locate(source)
        with _Read(self, source, session, deadline) as read:
            head = memoryview(bytearray(min(HEADER_BYTES + into.nbytes, FIRST_BYTES)))
            read.wait(read.ask(slot, head))
            source.check(bytes(head[:HEADER_BYTES]))
            first = head.nbytes - HEADER_BYTES
            into[:first] = head[HEADER_BYTES:]
            digest = xxhash.xxh3_64(into[:first])
            starts = deque(range(first, into.nbytes, BLOCK_BYTES))
            asked: deque[tuple[Future[None], memoryview]] = deque()
            while starts or asked:
                while starts and len(asked) < WINDOW:
                    start = starts.popleft()
                    part = into[start : start + BLOCK_BYTES]
                    asked.append((read.ask(slot + HEADER_BYTES + start, part), part))
                arriving, part = asked.popleft()
                read.wait(arriving)
                digest.update(part)
            again = head[:HEADER_BYTES]
            read.wait(read.ask(slot, again))
            source.check(bytes(again))
        if digest.intdigest() != source.location.checksum:
            found, expected = digest.intdigest(), source.location.checksum
            raise Corrupt(f"{source}: checksum {found:#018x}, expected {expected:#018x}")

    def close(self) -> None:
        """As `Engine` says, but a thread that Mooncake keeps in a handshake with a frozen peer, for 60 s
        at most, is left behind, and with it the Transfer Engine and the memory it knows."""
        with self._lock:
            self._closed = True
            for future in self._wanted:
                future.cancel()
        if self._mooncake is None:
            return
        for view in self._exposed:
            self._mooncake.unregister_memory(_address(view))
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put_nowait(None)
        patience = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, patience - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._mooncake = None  # stops listening; nothing lands in the staging blocks any more
            self._staging = memoryview(b"")

    def _register(self, name: str, view: memoryview) -> None:
        if self._mooncake.register_memory(_address(view), view.nbytes):
            raise OSError(f"mooncake cannot register the {view.nbytes} bytes of {name}; its log says why")

    def _submit(self, job: "_Job") -> None:
        with self._lock:
            if self._closed:
                raise PeerUnreachable(f"{job.source}: the engine is closed")
            self._wanted.add(job.done)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            message = f"all {BLOCKS} staging blocks of mooncake wait for peers that do not answer"
            raise PeerUnreachable(f"{job.source}: {message}") from None

    def _forget(self, futures: list["Future[None]"]) -> None:
        with self._lock:
            self._wanted.difference_update(futures)

    # ---- the threads that own a staging block each

    def _pull(self, block: memoryview) -> None:
        while job := self._jobs.get():
            if job.done.cancelled():
                continue
            with self._lock:
                self.busy_blocks += 1
            problem = self._transfer(job, block)
            with self._lock:
                self.busy_blocks -= 1
            # From here on the reader waits for us when it gives up, so the copy is the last write.
            if not job.done.set_running_or_notify_cancel():
                continue
            if problem:
                job.done.set_exception(PeerUnreachable(f"{job.source}: {problem}"))
            else:
                memory.copy(job.target, block[: job.target.nbytes])
                job.done.set_result(None)

    def _transfer(self, job: "_Job", block: memoryview) -> str | None:
        """Returns when nothing of the job can land in `block` any more, with the reason if it failed."""
        # Opening a session holds a lock of the whole engine for the length of its handshake, so a peer
        # that does not answer must be found by other means.
        if job.first and self._mooncake.send_probe(job.session):
            return f"no connection to {job.session}"
        batch = self._mooncake.batch_transfer_async_read(
            job.session, [_address(block)], [job.remote], [job.target.nbytes]
        )
        if not batch:
            return f"no connection to {job.session}"
        state, pause = 0, _POLL_SECONDS
        while state not in (_COMPLETED, _FAILED):
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS_MAX)
            if self._closed:  # the block is not used again, and stays until the Transfer Engine is gone
                return "the engine is closed"
            state = self._mooncake.transfer_check_status(batch)
        return None if state == _COMPLETED else f"{job.session} ended the connection or refuses the address"


@dataclass(frozen=True)
class _Job:
    """A part of a slot that a reader wants in `target`, until it cancels `done`."""

    source: Source
    session: str
    remote: int
    target: memoryview
    first: bool
    done: "Future[None]"


class _Read:
    """What one reader has asked for; when it is left, nothing is written for the reader any more."""

    def __init__(self, engine: MooncakeEngine, source: Source, session: str, deadline: float) -> None:
        self._engine, self._source, self._session = engine, source, session
        self._deadline = deadline
        self._asked: list[Future[None]] = []

    def __enter__(self) -> "_Read":
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._asked:
            if not future.cancel():
                future.exception()  # waits for the copy that has begun: one block
        self._engine._forget(self._asked)

    def ask(self, remote: int, target: memoryview) -> "Future[None]":
        future: Future[None] = Future()
        first = not self._asked
        self._asked.append(future)
        self._engine._submit(_Job(self._source, self._session, remote, target, first, future))
        return future

    def wait(self, future: "Future[None]") -> None:
        try:
            future.result(max(0.0, self._deadline - time.monotonic()))
        except CancelledError:
            raise PeerUnreachable(f"{self._source}: the engine is closed") from None
        except TimeoutError:
            late = f"{self._session} did not send everything in time"
            blocks = f"{self._engine.busy_blocks} of {BLOCKS} staging blocks are in use"
            raise ReadTimeout(f"{self._source}: {late}; {blocks}") from None


def _locate(source: Source) -> tuple[str, int]:
    """The session to read from and the address of the slot there, checked as far as we can see."""
    match = _ADDRESS.fullmatch(source.address)
    if match is None:
        raise PeerUnreachable(f"{source}: {source.address[:200]!r} is no address of mooncake")
    if match["incarnation"] != source.incarnation:
        raise SlotGone(f"{source}: {match['session']} is incarnation {match['incarnation']}")
    arenas = {name: (start, nbytes) for name, start, nbytes in _arenas(match["arenas"])}
    location = source.location
    if location.arena not in arenas:
        raise SlotGone(f"{source}: {match['session']} has no arena {location.arena}")
    start, nbytes = arenas[location.arena]
    end = location.offset + HEADER_BYTES + location.length
    if location.offset < 0 or location.length < 0 or end > nbytes:
        raise Corrupt(f"{source}: ends at byte {end} of an arena of {nbytes}")
    return match["session"], start + location.offset


def _arenas(text: str) -> Iterator[tuple[str, int, int]]:
    for match in _ARENA.finditer(text):
        yield match["name"], int(match["start"], 16), int(match["nbytes"], 16)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
