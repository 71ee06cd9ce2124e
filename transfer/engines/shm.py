"""Shared memory: on one host a reader maps its peer's arena, read-only, and pays a single copy.

Peers hand out the descriptor of their arena over a Unix socket in the abstract namespace, which has
no file and vanishes with its process. The socket stays open for as long as the mapping is of use: its
end says that the peer is gone. The bytes never leave the machine's memory, so the header alone is
checked, before and after the copy; a slot is invalidated before it is reused. Nobody can count readers in
other processes, so slots are not pinned for them.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from transfer import memory
from transfer.arena import map_readonly
from transfer.engines.base import Source
from transfer.errors import Corrupt, PeerUnreachable, ReadTimeout, SlotGone
from transfer.header import HEADER_BYTES
from transfer.pool import Pool
from transfer.urls import EndpointURL

MAX_MAPPINGS = 64
MAX_CLIENTS = 1024

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_REQUEST_BYTES = 512


@dataclass(frozen=True)
class _Mapping:
    incarnation: str
    memory: memoryview
    connection: socket.socket


class ShmEngine:
    """Serves and reads arenas of processes of one user on one host, as `Engine` says."""

    name = "shm"
    checks_payload = False

    def __init__(self, incarnation: str) -> None:
        self.address = f"@triptych-{incarnation}"
        self.scope = _host_scope()
        self._incarnation = incarnation
        self._pools: Mapping[str, Pool] = {}
        self._clients: dict[int, socket.socket] = {}  # of the serving thread alone
        self._mappings: dict[tuple[EndpointURL, str], _Mapping] = {}  # the most recently added last
        self._opening: set[socket.socket] = set()
        self._lock = threading.Lock()  # guards _mappings and _opening
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._epoll = select.epoll()
        self._thread = threading.Thread(target=self._serve, name="shm-serve", daemon=True)

    def start(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._listener.bind(_abstract(self.address))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._thread.start()

    def read(self, source: Source, into: memoryview, deadline: float) -> None:
        location = source.location
        start = location.offset + HEADER_BYTES
        end = start + location.length
        # A view of our own that ends here: the traceback of an error must not keep the mapping alive.
        with self._map(source, deadline)[:] as arena:
            if location.offset < 0 or location.length < 0 or end > arena.nbytes:
                raise Corrupt(f"{source}: ends at byte {end} of an arena of {arena.nbytes}")
            with arena[location.offset : start] as header, arena[start:end] as payload:
                source.check(bytes(header))
                memory.copy(into, payload)
                source.check(bytes(header))

    def close(self) -> None:
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()
        for client in self._clients.values():
            client.close()
        with self._lock:
            for mapping in self._mappings.values():
                mapping.connection.close()
            self._mappings.clear()
            for connection in self._opening:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it
            self._epoll.close()

    # ---- the serving thread

    def _serve(self) -> None:
        while True:
            for descriptor, events in self._epoll.poll():
                if descriptor in self._clients:
                    self._answer(descriptor)
                elif descriptor != self._listener.fileno():
                    self._forget(descriptor)
                elif events & select.EPOLLHUP:
                    return
                else:
                    self._accept()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor left for it
        if len(self._clients) >= MAX_CLIENTS or _peer_uid(client) != os.getuid():
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._epoll.register(client, select.EPOLLIN)

    def _answer(self, descriptor: int) -> None:
        client = self._clients[descriptor]
        try:
            request = client.recv(_REQUEST_BYTES)
            incarnation, _, name = request.decode(errors="replace").partition(" ")
            if request and incarnation == self._incarnation and name in self._pools:
                arena = self._pools[name].arena
                socket.send_fds(client, [b"%d" % arena.nbytes], [arena.fd])
                return
            if request:
                client.send(b"no")
        except BlockingIOError:
            return  # the descriptor was another's when it became readable
        except OSError:
            pass
        del self._clients[descriptor]
        client.close()

    def _forget(self, descriptor: int) -> None:
        """A peer's connection ended: its memory must not be kept alive by us."""
        with self._lock:
            for key, mapping in self._mappings.items():
                if mapping.connection.fileno() == descriptor:
                    del self._mappings[key]
                    mapping.connection.close()
                    return

    # ---- the reading threads

    def _map(self, source: Source, deadline: float) -> memoryview:
        key = (source.url, source.location.arena)
        with self._lock:
            known = self._mappings.get(key)
        if known and known.incarnation == source.incarnation:
            return known.memory
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock:
            self._opening.add(connection)
        try:
            mapping = _open(connection, source, deadline)
        except BaseException:
            connection.close()
            raise
        finally:
            with self._lock:
                self._opening.remove(connection)
        with self._lock:
            if self._epoll.closed:
                mapping.connection.close()
                raise PeerUnreachable(f"{source}: the engine is closed")
            replaced = self._mappings.pop(key, None)
            if replaced is None and len(self._mappings) >= MAX_MAPPINGS:
                replaced = self._mappings.pop(next(iter(self._mappings)))
            if replaced:
                replaced.connection.close()
            self._mappings[key] = mapping
            self._epoll.register(mapping.connection, select.EPOLLIN)
        return mapping.memory


def _open(connection: socket.socket, source: Source, deadline: float) -> _Mapping:
    """Asks the peer for its arena and maps it."""
    where = f"{source}: {source.address}"
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.connect(_abstract(source.address))
        if (uid := _peer_uid(connection)) != os.getuid():
            raise PeerUnreachable(f"{where} belongs to user {uid}, not {os.getuid()}")
        connection.send(f"{source.incarnation} {source.location.arena}".encode())
        reply, descriptors, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 1)
    except TimeoutError:
        raise ReadTimeout(f"{where} did not answer in time") from None
    except OSError as error:
        raise PeerUnreachable(f"{where}: {error}") from None
    if not reply:
        raise PeerUnreachable(f"{where} closed the connection")
    if not descriptors:
        raise SlotGone(f"{where} is not incarnation {source.incarnation}, or has no such arena")
    try:
        return _Mapping(source.incarnation, map_readonly(descriptors[0], int(reply)), connection)
    except (OSError, ValueError) as error:
        raise Corrupt(f"{where}: {error}") from None
    finally:
        os.close(descriptors[0])


def _abstract(address: str) -> str:
    return "\0" + address.removeprefix("@")


def _peer_uid(connection: socket.socket) -> int:
    _, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(uid)


def _host_scope() -> str:
    """Who can reach an abstract socket and be let in: this boot, this network namespace, this user."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}/{os.getuid()}"
