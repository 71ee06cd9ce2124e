"""Certificates for tests of TLS, as PEM files."""

from __future__ import annotations

from pathlib import Path

import trustme

from transfer.tls import TlsFiles


def private_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pem_files(
    directory: Path, signer: trustme.CA, host: str = "127.0.0.1", trusted: trustme.CA | None = None
) -> tuple[Path, Path, Path]:
    """A certificate for ``host``, its key, and the authority that its owner trusts (its own by default)."""
    directory.mkdir(exist_ok=True)
    issued = signer.issue_cert(host)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return (
        private_file(directory / "cert.pem", chain, 0o644),
        private_file(directory / "key.pem", issued.private_key_pem.bytes()),
        private_file(directory / "ca.pem", (trusted or signer).cert_pem.bytes(), 0o644),
    )


def tls_files(
    directory: Path, signer: trustme.CA, host: str = "127.0.0.1", trusted: trustme.CA | None = None
) -> TlsFiles:
    return TlsFiles.load(*pem_files(directory, signer, host, trusted))
