"""CURVE on ZeroMQ sockets: what passes is encrypted, and only peers with our own key pair get in.

CURVE alone proves the server to the client; that the client is one of us is for ZAP to ask (ZeroMQ RFC 27).
"""

import contextlib
import logging
import threading

import zmq
from zmq.utils import z85

from transfer.keys import TransferKeys

log = logging.getLogger(__name__)

FRAME_OVERHEAD = 33  # bytes that encryption adds to a frame: command name, flags, nonce, authenticator
MAX_LOGGED = 1024  # refused addresses that are remembered, so that each is logged once

_ZAP = "inproc://zeromq.zap.01"


def guard_server(
    context: "zmq.Context[zmq.Socket[bytes]]", server: "zmq.Socket[bytes]", keys: TransferKeys
) -> None:
    """Makes `server`, not yet bound, admit only clients with `keys`; ends with the context."""
    server.curve_server = True
    server.curve_secretkey = keys.secret
    # Without this, libzmq would let everybody in if it found no one to ask.
    server.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    server.setsockopt_string(zmq.ZAP_DOMAIN, "transfer")
    door = context.socket(zmq.REP)
    door.linger = 0
    door.bind(_ZAP)
    expected = z85.decode(keys.public)
    threading.Thread(target=_admit, args=(door, expected), name="zmq-admit", daemon=True).start()


def guard_client(client: "zmq.Socket[bytes]", keys: TransferKeys) -> None:
    """Makes `client`, not yet connected, talk only to servers with `keys`."""
    client.curve_serverkey = client.curve_publickey = keys.public
    client.curve_secretkey = keys.secret


def _admit(door: "zmq.Socket[bytes]", expected: bytes) -> None:
    """Answers libzmq's question for each new connection: does it have our public key?"""
    refused: set[str] = set()
    with door, contextlib.suppress(zmq.ContextTerminated):
        while True:
            version, request, _domain, address, _identity, mechanism, *credentials = door.recv_multipart()
            admitted = mechanism == b"CURVE" and credentials == [expected]
            verdict = [b"200", b"OK"] if admitted else [b"400", b"another key"]
            door.send_multipart([version, request, *verdict, b"", b""])
            host = address.decode().removeprefix("::ffff:")
            if not admitted and host not in refused and len(refused) < MAX_LOGGED:
                refused.add(host)
                log.warning("refused a connection from %s: it does not have our transfer keys", host)
