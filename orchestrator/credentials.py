"""What the orchestrator shows to its roles, and asks of them: the cluster's token, certificates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from transfer.secrets import read_token
from transfer.tls import TlsFiles, load_tls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("security").add_argument
    add(
        "--cluster-token-file",
        type=Path,
        metavar="FILE",
        help="the secret word that orchestrator and roles share, made by triptych keys --token; it travels"
        " as it is unless TLS hides it",
    )
    add(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="this process's certificate (PEM) on control streams; roles must then have one as well",
    )
    add("--tls-key", type=Path, metavar="FILE", help="the key of that certificate (PEM)")
    add("--tls-ca", type=Path, metavar="FILE", help="the authority that signed all certificates (PEM)")


@dataclass(frozen=True)
class Credentials:
    """Without any, a role is believed to be whoever answers at its URL."""

    token: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> Credentials:
        """Raises OSError or ValueError that names the file or the option."""
        token = None if args.cluster_token_file is None else read_token(args.cluster_token_file)
        return Credentials(token, load_tls(args.tls_cert, args.tls_key, args.tls_ca))

    def __bool__(self) -> bool:
        return self.token is not None or self.tls is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be sent with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self, target: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """To ``HOST:PORT``; with TLS, the role's certificate must be for that very host."""
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        tls = grpc.ssl_channel_credentials(self.tls.authority, self.tls.key, self.tls.certificate)
        return grpc.aio.secure_channel(target, tls, options=options)
