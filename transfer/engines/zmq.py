"""ZeroMQ: reads slots over any TCP network, in chunks, so that no read holds up the others for long.

The serving side checks each chunk against its live slots before it answers, and pins the slot until
libzmq, which sends from the arena itself, has let go of the chunk. The reader checks the header that comes
with each chunk, and the checksum of the payload in its own copy. With transfer keys, peers must know each
other and the bytes are encrypted.
"""

import contextlib
import itertools
import math
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping

import xxhash
import zmq
from zmq.utils.monitor import parse_monitor_message

from transfer.engines import curve
from transfer.engines.base import Source
from transfer.errors import Corrupt, PeerUnreachable, ReadTimeout, SlotGone
from transfer.header import HEADER_BYTES
from transfer.keys import TransferKeys
from transfer.pool import Pool

CHUNK_BYTES = 1 << 20
WINDOW = 3  # chunks a reader has asked for and not received; few, so that they stay in the caches
MAX_IDLE = 64  # connections kept for the next read

_REQUEST = struct.Struct("<QQQQ")  # slot offset, generation, first byte, bytes
_DATA, _GONE = b"data", b"gone"

_HEARTBEAT_MS, _SILENCE_MS, _CONNECT_MS = 2000, 5000, 3000
_STRANGER = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_LOSSES = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED | _STRANGER


class ZmqEngine:
    """Serves and reads slots over TCP, as `Engine` says."""

    name = "zmq"
    checks_payload = True
    scope = ""

    def __init__(
        self,
        incarnation: str,
        host: str,
        port: int = 0,
        advertise: str | None = None,
        keys: TransferKeys | None = None,
    ) -> None:
        """Listens on `host` (a name or an address) at `port`, 0 for any; peers dial `advertise` or `host`.

        With `keys`, serves and reads only peers that have the same. Raises ValueError if `host` is a
        wildcard and `advertise` is not given.
        """
        if host in ("0.0.0.0", "::", "*", "") and not advertise:
            raise ValueError(f"host {host!r} is not an address that peers can dial: advertise one")
        self.address = ""
        self._incarnation = incarnation.encode()
        self._bind = (host, port)
        self._advertise = advertise or host
        self._keys = keys
        self._pools: dict[bytes, Pool] = {}
        self._context = zmq.Context()
        self._idle: list[_Connection] = []  # the most recently used last
        self._lock = threading.Lock()  # guards _idle
        self._closed = False

    def start(self, pools: Mapping[str, Pool]) -> None:
        self._pools = {name.encode(): pool for name, pool in pools.items()}
        router = _socket(self._context, zmq.ROUTER)
        router.setsockopt(zmq.MAXMSGSIZE, 1024)
        if self._keys:
            curve.guard_server(self._context, router, self._keys)
        try:
            router.bind(_resolve(*self._bind))
        except (zmq.ZMQError, OSError) as error:
            router.close()
            raise OSError(f"cannot listen on {_tcp(*self._bind)}: {error}") from None
        port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self.address = _tcp(self._advertise, port)
        threading.Thread(target=self._serve, args=(router,), name="zmq-serve", daemon=True).start()

    def read(self, source: Source, into: memoryview, deadline: float) -> None:
        if into.nbytes != source.location.length:
            raise ValueError(f"{source}: {source.location.length} bytes do not fill {into.nbytes}")
        try:
            connection = self._take(source)
            try:
                found = connection.read(source, into, deadline)
            except BaseException:
                connection.close()  # late answers must find nobody
                raise
            self._give_back(connection)
        except zmq.ZMQError as error:
            raise PeerUnreachable(f"{source}: {source.address}: {error}") from None
        if found != source.location.checksum:
            raise Corrupt(f"{source}: checksum {found:#018x}, expected {source.location.checksum:#018x}")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()
        self._context.term()  # wakes all who wait on a socket; returns when they have closed it

    def _serve(self, router: "zmq.Socket[bytes]") -> None:
        with router, contextlib.suppress(zmq.ContextTerminated):
            while True:
                identity, *request = router.recv_multipart()
                # A short answer to a malformed request would help nobody but a prober.
                with contextlib.suppress(ValueError, struct.error):
                    router.send_multipart([identity, *self._answer(request)], copy=False)

    def _answer(self, request: list[bytes]) -> tuple[bytes | memoryview, ...]:
        incarnation, arena, numbers = request
        offset, generation, start, count = _REQUEST.unpack(numbers)
        if incarnation != self._incarnation:
            return _GONE, b"this is incarnation " + self._incarnation
        pool = self._pools.get(arena)
        pin = pool.pin(offset, generation) if pool else None
        if pin is None:
            return _GONE, b"generation %d is not there any more" % generation
        if count > CHUNK_BYTES or start + count > pin.payload.nbytes:
            pin.release()
            return _GONE, b"the slot has %d bytes" % pin.payload.nbytes
        chunk = pin.payload[start : start + count]
        # Not copied: libzmq holds the chunk until it has sent it or has given its reader up.
        weakref.finalize(chunk, pin.release).atexit = False
        return _DATA, bytes(pin.header), chunk

    def _take(self, source: Source) -> "_Connection":
        with self._lock:
            if self._closed:
                raise PeerUnreachable(f"{source}: the engine is closed")
            for connection in reversed(self._idle):
                if connection.address == source.address:
                    self._idle.remove(connection)
                    if not connection.lost():
                        return connection
                    connection.close()
                    break
        try:
            return _Connection(self._context, source.address, self._keys)
        except (OSError, ValueError) as error:
            raise PeerUnreachable(f"{source}: {source.address}: {error}") from None

    def _give_back(self, connection: "_Connection") -> None:
        with self._lock:
            self._idle.append(connection)
            surplus = self._idle if self._closed else self._idle[:-MAX_IDLE]
            for old in list(surplus):
                old.close()
                self._idle.remove(old)


class _Connection:
    """A socket of one reading thread at a time, and what its monitor says of the peer."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", address: str, keys: TransferKeys | None
    ) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        # Names are looked up here: libzmq would do it in the thread that moves everybody's bytes.
        resolved = _resolve(host.strip("[]"), int(port))
        self.address = address
        self._poller = zmq.Poller()
        self._socket = _socket(context, zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(_LOSSES)
        try:
            self._socket.setsockopt(zmq.MAXMSGSIZE, CHUNK_BYTES + curve.FRAME_OVERHEAD)
            self._socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
            self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # what was asked is lost with the connection
            if keys:
                curve.guard_client(self._socket, keys)
            self._poller.register(self._monitor, zmq.POLLIN)
            self._poller.register(self._socket, zmq.POLLIN)
            self._socket.connect(resolved)
        except BaseException:
            self.close()
            raise

    def lost(self) -> bool:
        return bool(self._monitor.poll(0))

    def close(self) -> None:
        # In this order: libzmq's I/O thread would wait for ever to tell a monitor that nobody reads.
        with contextlib.suppress(zmq.ContextTerminated):
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def read(self, source: Source, into: memoryview, deadline: float) -> int:
        """Fills `into` and returns the checksum of what arrived."""
        digest = xxhash.xxh3_64()
        starts = iter(range(0, max(1, into.nbytes), CHUNK_BYTES))
        asked = deque(self._ask(source, into, start) for start in itertools.islice(starts, WINDOW))
        while asked:
            self._wait(source, deadline)
            chunk = asked.popleft()  # one connection and one serving thread: answers keep their order
            self._receive(source, chunk)
            asked.extend(self._ask(source, into, start) for start in itertools.islice(starts, 1))
            digest.update(chunk)
        return digest.intdigest()

    def _ask(self, source: Source, into: memoryview, start: int) -> memoryview:
        location = source.location
        chunk = into[start : start + CHUNK_BYTES]
        numbers = _REQUEST.pack(location.offset, location.generation, start, chunk.nbytes)
        request = [source.incarnation.encode(), location.arena.encode(), numbers]
        self._socket.send_multipart(request, zmq.NOBLOCK)
        return chunk

    def _wait(self, source: Source, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        ready = dict(self._poller.poll(max(0, math.ceil(remaining * 1000))))
        if remaining <= 0 or not ready:
            raise ReadTimeout(f"{source}: {source.address} did not send everything in time")
        if self._socket not in ready:
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            why = ": the handshake failed, the transfer keys may differ" if event & _STRANGER else ""
            raise PeerUnreachable(f"{source}: no connection to {source.address}{why}")

    def _receive(self, source: Source, chunk: memoryview) -> None:
        kind, detail = self._socket.recv(zmq.NOBLOCK), self._socket.recv(zmq.NOBLOCK)
        if kind == _GONE:
            raise SlotGone(f"{source}: {source.address} says: {detail[:200].decode(errors='replace')}")
        if kind != _DATA or len(detail) != HEADER_BYTES:
            raise Corrupt(f"{source}: {source.address} does not speak our protocol")
        source.check(detail)
        received = self._socket.recv_into(chunk, flags=zmq.NOBLOCK)
        if received != chunk.nbytes or self._socket.getsockopt(zmq.RCVMORE):
            raise Corrupt(f"{source}: {source.address} sent {received} bytes for a chunk of {chunk.nbytes}")


def _socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    made = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0),
        # A ROUTER drops in silence what exceeds this, and libzmq learns late what a peer has taken: far above
        # what the window lets a reader ask for. Messages are references to the arena and cost no memory.
        (zmq.SNDHWM, 1024),
        (zmq.RCVHWM, 2 * WINDOW),
        (zmq.IPV6, 1),
        (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
        (zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS),
        (zmq.HEARTBEAT_TTL, _SILENCE_MS),
    ):
        made.setsockopt(option, value)
    return made


def _tcp(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _resolve(host: str, port: int) -> str:
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
    return _tcp(str(address[0]), port)
