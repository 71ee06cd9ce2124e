"""The transfer endpoint: what a process needs to give tensors to its peers and to get theirs."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from transfer import memory
from transfer.arena import Arena
from transfer.engines.base import Engine, EngineAddress, Source
from transfer.engines.shm import ShmEngine
from transfer.engines.zmq import ZmqEngine
from transfer.errors import PeerUnreachable, TransferError
from transfer.manifest import Value, pack, unpack
from transfer.pool import Lease, Pool, SlotLocation
from transfer.urls import EndpointURL

T = TypeVar("T")

COPY_THREADS = 2
READ_THREADS = 16


@dataclass(frozen=True)
class Held:
    """An output that peers may read until it is released."""

    location: SlotLocation
    release: Callable[[], None]


@dataclass(frozen=True)
class Received:
    """A peer's output in our memory. The tensors in `values` are views that end with `release`."""

    values: dict[str, Value]
    engine: str
    nbytes: int
    seconds: float  # of reading, without the wait for room
    release: Callable[[], None]


class TransferEndpoint:
    """The data plane of one process: an outbox that peers read, an inbox that their outputs are read into.

    Belongs to the event loop that started it; copying and reading happen on worker threads.
    """

    def __init__(self, url: EndpointURL, outbox: Pool, inbox: Pool, engines: Sequence[Engine]) -> None:
        self.url = url
        self.pools = (outbox, inbox)
        self._outbox, self._inbox = outbox, inbox
        self._engines = engines
        self._copiers = ThreadPoolExecutor(COPY_THREADS, "transfer-copy")
        self._hashers = ThreadPoolExecutor(COPY_THREADS, "transfer-hash")
        self._readers = ThreadPoolExecutor(READ_THREADS, "transfer-read")
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
    ) -> "TransferEndpoint":
        """Takes the memory and starts the named engines, of which the first that fits is used.

        `host`, `port` and `advertise` are where network engines listen and what peers dial instead
        of `host`. Raises OSError if memory or address are not to be had, ValueError for bad options.
        """
        makers: dict[str, Callable[[], Engine]] = {
            "shm": lambda: ShmEngine(incarnation),
            "zmq": lambda: ZmqEngine(incarnation, host, port, advertise),
        }
        if unknown := set(engines) - set(makers):
            raise ValueError(f"unknown engines {sorted(unknown)}, expected some of {sorted(makers)}")
        with contextlib.ExitStack() as undo:
            pools: list[Pool] = []
            for name, nbytes in (("outbox", outbox_bytes), ("inbox", inbox_bytes)):
                arena = await asyncio.to_thread(Arena, name, nbytes)
                undo.callback(arena.close)
                pools.append(Pool(name, arena))
            started: list[Engine] = []
            for name in engines:
                engine = makers[name]()
                undo.callback(engine.close)
                engine.start({"outbox": pools[0]})
                started.append(engine)
            undo.pop_all()
        return cls(url, pools[0], pools[1], started)

    @property
    def addresses(self) -> tuple[EngineAddress, ...]:
        """How peers reach this process, best first."""
        return tuple(EngineAddress(e.name, e.address, e.scope) for e in self._engines)

    async def put(self, values: Mapping[str, Value], timeout: float) -> Held:
        """Copies `values` into an outbox slot, for which it waits at most `timeout` seconds.

        The tensors must not change until this returns. Raises ManifestError for values that cannot
        travel, TooLarge and PoolFull.
        """
        packed = pack(values)
        lease = await self._outbox.acquire(packed.nbytes, timeout)

        def copy() -> int:
            hashing = self._hashers.submit(packed.checksum)
            packed.write_into(lease.payload)
            early = hashing.result()
            return memory.checksum(lease.payload) if early is None else early

        checksum = await self._on_thread(self._copiers, lease, copy)
        return Held(lease.publish(packed.manifest, checksum), lease.release)

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

        values = await self._on_thread(self._readers, lease, read)
        seconds = time.monotonic() - started
        return Received(values, engine.name, location.length, seconds, lease.release)

    async def close(self) -> None:
        """Fails what waits or reads, then gives the memory back; slots still held are lost to peers."""
        for pool in self.pools:
            pool.close()
        for engine in self._engines:
            await asyncio.to_thread(engine.close)
        for executor in (self._copiers, self._hashers, self._readers):
            await asyncio.to_thread(executor.shutdown)
        await asyncio.gather(*self._at_work, return_exceptions=True)
        for pool in self.pools:
            pool.arena.close()

    def _choose(self, url: EndpointURL, addresses: Sequence[EngineAddress]) -> tuple[Engine, str]:
        for engine in self._engines:
            for offered in addresses:
                if offered.engine == engine.name and offered.scope in ("", engine.scope):
                    return engine, offered.address
        ours, theirs = [e.name for e in self._engines], [a.engine for a in addresses]
        raise PeerUnreachable(f"{url}: no engine of {ours} reaches it, it offers {theirs}")

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
                running.add_done_callback(lambda _: lease.release())
            raise
