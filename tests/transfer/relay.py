"""A relay between a reader and a server, which does harm to the first connection that comes through it."""

import contextlib
import socket
import threading
from collections.abc import Callable

PIECE = 65536
PATIENCE = 60.0  # seconds a stalled connection waits to go on


class Relay:
    """Passes bytes on in both directions, but to byte `at` of those to the first reader it does `harm`.

    `cut` closes the connection instead of passing that byte on, `flip` changes one bit of it, `stall`
    sets `reached` and waits for `go`. A reader that leaves does not keep the server's bytes from being
    drained, and `drained` says that the server has closed the first connection.
    """

    def __init__(self, target: str, harm: str = "", at: int = 0) -> None:
        """`target` is the server's address, `tcp://HOST:PORT`."""
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._harm, self._at = harm, at
        self.reached, self.go, self.drained = threading.Event(), threading.Event(), threading.Event()
        self.seen = bytearray()  # what the server sent on the first connection
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for one in self._sockets:
            _shut(one)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        first = True
        while True:
            try:
                reader = self._listener.accept()[0]
            except OSError:
                return
            self._sockets.append(reader)
            server = socket.create_connection(self._target, timeout=PATIENCE)
            self._sockets.append(server)
            self._spawn(self._up, reader, server)
            self._spawn(self._down_harmed if first else self._down, server, reader)
            first = False

    def _spawn(self, work: Callable[..., None], *sockets: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=sockets))
        self._threads[-1].start()

    def _up(self, reader: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := reader.recv(PIECE):
                server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, reader: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(PIECE):
                reader.sendall(piece)
        _shut(reader)

    def _down_harmed(self, server: socket.socket, reader: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(PIECE):
                position = self._at - len(self.seen)
                self.seen += piece
                if self._harm and 0 <= position < len(piece):
                    piece = self._do_harm(piece, position, server, reader)
                with contextlib.suppress(OSError):  # the reader has left
                    reader.sendall(piece)
        _shut(reader)
        self.drained.set()

    def _do_harm(self, piece: bytes, position: int, server: socket.socket, reader: socket.socket) -> bytes:
        before, after = piece[:position], piece[position:]
        if self._harm == "flip":
            return before + bytes([after[0] ^ 0x04]) + after[1:]
        reader.sendall(before)
        if self._harm == "stall":
            self.reached.set()
            self.go.wait(PATIENCE)
            return after
        _shut(reader)
        _shut(server)
        return b""


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
