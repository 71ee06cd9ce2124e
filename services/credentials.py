"""Who may command a role: those who know the cluster's token and, with TLS, come from its authority."""

from __future__ import annotations

import argparse
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from transfer.secrets import read_token
from transfer.tls import TlsFiles, load_tls

log = logging.getLogger(__name__)

OPEN_SERVICE = "/grpc.health.v1.Health/"  # probes have no token
FORGET_SECONDS = 3600.0  # a refused caller is named in the log once in this time
MAX_NAMED = 256  # refused callers, in that time
REFUSAL = "this role wants the cluster's token (--cluster-token-file)"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("security").add_argument
    add(
        "--cluster-token-file",
        type=Path,
        metavar="FILE",
        help="obey only orchestrators that know this secret word, made by triptych keys --token; it travels"
        " as it is unless TLS hides it",
    )
    add(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="this role's certificate (PEM), for the host in --url; callers must then have one as well",
    )
    add("--tls-key", type=Path, metavar="FILE", help="the key of that certificate (PEM)")
    add("--tls-ca", type=Path, metavar="FILE", help="the authority that signed all certificates (PEM)")


@dataclass(frozen=True)
class Credentials:
    """Without any, whoever reaches the control port is obeyed."""

    token: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> Credentials:
        """Raises OSError or ValueError that names the file or the option."""
        token = None if args.cluster_token_file is None else read_token(args.cluster_token_file)
        return Credentials(token, load_tls(args.tls_cert, args.tls_key, args.tls_ca))

    def __bool__(self) -> bool:
        return self.token is not None or self.tls is not None

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        return [] if self.token is None else [TokenGate(self.token)]

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Opens ``HOST:PORT``; returns the port. RuntimeError if it cannot be had."""
        if self.tls is None:
            return server.add_insecure_port(address)
        pair = (self.tls.key, self.tls.certificate)
        tls = grpc.ssl_server_credentials([pair], self.tls.authority, require_client_auth=True)
        return server.add_secure_port(address, tls)


class TokenGate(grpc.aio.ServerInterceptor):
    """Lets calls with the token through, and those of health probes; refuses all others unread."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._named: OrderedDict[str, float] = OrderedDict()  # refused hosts -> when the log named them
        self._refusal: Handler = grpc.stream_stream_rpc_method_handler(
            self._refuse
        )  # fits calls of every kind

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        if method.startswith(OPEN_SERVICE) or self._knows_token(metadata):
            return await continuation(handler_call_details)
        return self._refusal

    def _knows_token(self, metadata: Any) -> bool:
        given = [value for key, value in metadata or () if key == "authorization"]
        return any(hmac.compare_digest(_bytes(value), self._expected) for value in given)

    async def _refuse(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        self._note(context.peer().rpartition(":")[0])
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)

    def _note(self, host: str) -> None:
        """One line for each caller, not for each of its tries; of a flood of callers only the first."""
        now = time.monotonic()
        while self._named and next(iter(self._named.values())) < now - FORGET_SECONDS:
            self._named.popitem(last=False)
        if host not in self._named and len(self._named) < MAX_NAMED:
            self._named[host] = now
            log.warning("a caller without the cluster's token was refused: %s", host)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
