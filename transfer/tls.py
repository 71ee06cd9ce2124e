"""TLS files: a process's certificate, its key, and the authority that signs those of its peers."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from transfer.secrets import read_secret

MAX_PEM_BYTES = 1 << 20


@dataclass(frozen=True)
class TlsFiles:
    """The content of three PEM files, checked to be what they should."""

    certificate: bytes  # this process's own, followed by those between it and the authority
    key: bytes = field(repr=False)
    authority: bytes  # what every peer's certificate must be signed by

    @classmethod
    def load(cls, certificate: Path, key: Path, authority: Path) -> "TlsFiles":
        """Raises OSError or ValueError that names the file and what is wrong with it."""
        loaded = cls(_read(certificate), read_secret(key, MAX_PEM_BYTES), _read(authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError as error:
            raise ValueError(f"{authority}: expected certificates in PEM ({_why(error)})") from None
        try:
            # The empty password is for keys that need one: without it OpenSSL asks at the terminal.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            what = "expected a certificate and the unencrypted key that belongs to it, in PEM"
            raise ValueError(f"{certificate} and {key}: {what} ({_why(error)})") from None
        return loaded


def load_tls(certificate: Path | None, key: Path | None, authority: Path | None) -> TlsFiles | None:
    """The files of ``--tls-cert``, ``--tls-key`` and ``--tls-ca``; None if none is given.

    Raises ValueError when some are missing, and as `TlsFiles.load` does.
    """
    given = {"--tls-cert": certificate, "--tls-key": key, "--tls-ca": authority}
    missing = [name for name, path in given.items() if path is None]
    if certificate is None or key is None or authority is None:
        if len(missing) < len(given):
            raise ValueError(f"{' and '.join(missing)}: not given; TLS needs {', '.join(given)}, or none")
        return None
    return TlsFiles.load(certificate, key, authority)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_PEM_BYTES)


def _why(error: ssl.SSLError) -> str:
    return (error.reason or "not PEM").lower().replace("_", " ")
