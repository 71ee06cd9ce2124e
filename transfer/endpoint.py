"""The transfer endpoint: what a process needs to give tensors to its peers and to get theirs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from transfer import memory
from transfer.arena import Arena
from transfer.device import pin, unpin
from transfer.engines.base import Engine, EngineAddress, Source
from transfer.engines.mooncake import MooncakeEngine
from transfer.engines.mooncake_setup import MooncakeOptions
from transfer.engines.shm import ShmEngine
from transfer.engines.zmq import ZmqEngine
from transfer.errors import PeerUnreachable, TransferError
from transfer.keys import TransferKeys
from transfer.manifest import Value, pack, unpack
from transfer.pool import Lease, Pool, SlotLocation
from transfer.traffic import Meter, Traffic
from transfer.urls import EndpointURL

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_CHOICES = 1024  # peers whose last choice is remembered, so that it is logged when it changes
HASH_ASIDE_BYTES = 4 << 20  # from here on a second thread pays for hashing while one copies
COPY_THREADS = 2
READ_THREADS = 16


@dataclass(frozen=True)
class Choice:
    """The engine by which a peer is read, and why not by a better one."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Held:
    """An output that peers may read until it is released."""

    location: SlotLocation
    release: Callable[[], None]
    retain: Callable[[], None]  # for one more user, who then releases it too


@dataclass(frozen=True)
class Received:
    """A peer's output in our memory. The tensors in `values` are views that end with `release`."""

    values: dict[str, Value]
    engine: str
    nbytes: int
    seconds: float  # of reading, without the wait for room
    release: Callable[[], None]
    retain: Callable[[], None]  # for one more user, who then releases it too


class TransferEndpoint:
    """The data plane of one process: an outbox that peers read, an inbox that their outputs are read into.

    Belongs to the event loop that started it; copying and reading happen on worker threads.
    """

    def __init__(
        self,
        url: EndpointURL,
        outbox: Pool,
        inbox: Pool,
        engines: Sequence[Engine],
        pinned: Sequence[Arena] = (),
    ) -> None:
        self.url = url
        self.pools = (outbox, inbox)
        self._outbox, self._inbox = outbox, inbox
        self._engines = engines
        self._pinned = pinned
        self._hashes = any(engine.checks_payload for engine in engines)
        self._copiers = ThreadPoolExecutor(COPY_THREADS, "transfer-copy")
        self._hashers = ThreadPoolExecutor(COPY_THREADS, "transfer-hash")
        self._readers = ThreadPoolExecutor(READ_THREADS, "transfer-read")
        self._meter = Meter()
        self.choices: dict[EndpointURL, Choice] = {}  # for each peer, as it was read last
        self._at_work: set[asyncio.Future[Any]] = set()

    @classmethod
    async def start(
        cls,
        url: EndpointURL,
        incarnation: str,
        outbox_bytes: int,
        inbox_bytes: int,
        engines: Sequence[str] = ("shm", "zmq"),
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        mooncake: MooncakeOptions | None = None,
        keys: TransferKeys | None = None,
        device: torch.device | None = None,
    ) -> "TransferEndpoint":
        """Takes the memory and starts the named engines, of which the first that fits is used.

        `host`, `port` and `advertise` are where network engines listen and what peers dial instead
        of `host`; `mooncake` is for the engine of that name, and `keys` are for zmq alone, which then
        serves and reads only peers with the same. `device` is where this process computes. Raises OSError
        if memory or address are not to be had or the network is not declared as trusted, ValueError for
        bad options.
        """
        makers: dict[str, Callable[[], Engine]] = {
            "shm": lambda: ShmEngine(incarnation),
            "zmq": lambda: ZmqEngine(incarnation, host, port, advertise, keys),
            "mooncake": lambda: MooncakeEngine(incarnation, advertise or host, mooncake or MooncakeOptions()),
        }
        if unknown := set(engines) - set(makers):
            raise ValueError(f"unknown engines {sorted(unknown)}, expected some of {sorted(makers)}")
        with contextlib.ExitStack() as undo:
            pools: list[Pool] = []
            pinned: list[Arena] = []
            for name, nbytes in (("outbox", outbox_bytes), ("inbox", inbox_bytes)):
                arena = await asyncio.to_thread(Arena, name, nbytes)
                undo.callback(arena.close)
                if await asyncio.to_thread(_pinned, arena, device):
                    undo.callback(unpin, arena.memory)
                    pinned.append(arena)
                pools.append(Pool(name, arena))
            started: list[Engine] = []
            for name in engines:
                engine = makers[name]()
                undo.callback(engine.close)
                await asyncio.to_thread(engine.start, {"outbox": pools[0]})
                started.append(engine)
            undo.pop_all()
        return cls(url, pools[0], pools[1], started, pinned)

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        """How peers reach this process, best first."""
        return tuple(EngineAddress(e.name, e.address, e.scope) for e in self._engines)

    @property
    def traffic(self) -> list[Traffic]:
        """What was read from peers, by engine, and what was put into slots for them."""
        return self._meter.totals

    async def put(self, values: Mapping[str, Value], timeout: float) -> Held:
        """Copies `values` into an outbox slot, for which it waits at most `timeout` seconds.

        The tensors must not change until this returns; those on a device are computed, and not just queued
        for it. Raises ManifestError for values that cannot
        travel, TooLarge and PoolFull.
        """
        packed = pack(values)
        lease = await self._outbox.acquire(packed.nbytes, timeout)

        def copy() -> int:
            if not self._hashes:
                packed.write_into(lease.payload)
                return 0
            if packed.nbytes < HASH_ASIDE_BYTES:
                packed.write_into(lease.payload)
                return memory.checksum(lease.payload)
            hashing = self._hashers.submit(packed.checksum)
            packed.write_into(lease.payload)
            early = hashing.result()
            return memory.checksum(lease.payload) if early is None else early

        with self._meter.measure("copy", "out", packed.nbytes):
            checksum = await self._on_thread(self._copiers, lease, copy)
        return Held(lease.publish(packed.manifest, checksum), lease.release, lease.retain)

    async def fetch(
        self,
        url: EndpointURL,
        incarnation: str,
        addresses: Sequence[EngineAddress],
        location: SlotLocation,
        timeout: float,
    ) -> Received:
        """Reads a peer's slot into one of the inbox, within `timeout` seconds, the wait for room included.

        Raises a TransferError that names the peer, and then holds nothing. If it is cancelled, its
        slot comes back when the read has ended and nothing can write there any more.
        """
        deadline = time.monotonic() + timeout
        engine, address = self._choose(url, addresses)
        source = Source(url, incarnation, address, location)
        try:
            lease = await self._inbox.acquire(location.length, timeout)
        except TransferError as error:
            raise type(error)(f"{source}: {error}") from None
        started = time.monotonic()

        def read() -> dict[str, Value]:
            engine.read(source, lease.payload, deadline)
            try:
                return unpack(location.manifest, lease.payload)
            except TransferError as error:
                raise type(error)(f"{source}: {error}") from None

        with self._meter.measure(engine.name, "in", location.length):
            values = await self._on_thread(self._readers, lease, read)
        seconds = time.monotonic() - started
        return Received(values, engine.name, location.length, seconds, lease.release, lease.retain)

    async def close(self) -> None:
        """Fails what waits or reads, then gives the memory back; slots still held are lost to peers."""
        for pool in self.pools:
            pool.close()
        for engine in self._engines:
            await asyncio.to_thread(engine.close)
        for executor in (self._copiers, self._hashers, self._readers):
            await asyncio.to_thread(executor.shutdown)
        await asyncio.gather(*self._at_work, return_exceptions=True)
        for arena in self._pinned:
            unpin(arena.memory)
        for pool in self.pools:
            pool.arena.close()

    def _choose(self, url: EndpointURL, addresses: Sequence[EngineAddress]) -> tuple[Engine, str]:
        passed_over: list[str] = []
        for engine in self._engines:
            offers = [offered for offered in addresses if offered.engine == engine.name]
            for offered in offers:
                if offered.scope in ("", engine.scope):
                    self._note_choice(url, engine, passed_over)
                    return engine, offered.address
            why = "it is on another host" if offers else "it does not offer that"
            passed_over.append(f"not by {engine.name}: {why}")
        ours, theirs = [e.name for e in self._engines], [a.engine for a in addresses]
        raise PeerUnreachable(f"{url}: no engine of {ours} reaches it, it offers {theirs}")

    def _note_choice(self, url: EndpointURL, engine: Engine, passed_over: Sequence[str]) -> None:
        choice = Choice(engine.name, ", ".join(passed_over) or "first choice")
        if self.choices.get(url) != choice:
            log.info("%s is read by %s (%s)", url, choice.engine, choice.reason)
            self.choices.pop(url, None)
            self.choices[url] = choice
            if len(self.choices) > MAX_CHOICES:
                del self.choices[next(iter(self.choices))]

    async def _on_thread(self, executor: ThreadPoolExecutor, lease: Lease, work: Callable[[], T]) -> T:
        """Runs `work` on the lease's memory; unless it succeeds, releases the lease when it has ended."""
        running = asyncio.get_running_loop().run_in_executor(executor, work)
        self._at_work.add(running)
        running.add_done_callback(self._at_work.discard)
        try:
            return await asyncio.shield(running)
        except BaseException:
            if running.done():
                lease.release()
            else:  # cancelled, but the thread may still write
                running.add_done_callback(lambda ended: _abandon(ended, lease))
            raise


def _pinned(arena: Arena, device: torch.device | None) -> bool:
    """For copies from and to ``device`` at its full speed."""
    if device is None or device.type != "cuda":
        return False
    try:
        pin(arena.memory, device)
    except OSError as error:
        log.warning("%s: %s; copies from and to the device take longer", arena.name, error)
        return False
    return True


def _abandon(ended: "asyncio.Future[Any]", lease: Lease) -> None:
    ended.exception()  # nobody waits for it: asyncio would complain of an error that was not looked at
    lease.release()
