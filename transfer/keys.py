"""Transfer keys: the one CURVE key pair by which the processes of a cluster know each other."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from transfer.secrets import read_secret, write_secret

_LABEL = "triptych-transfer-key"
_LINE = re.compile(rf"{_LABEL} (\S{{40}})\n?".encode())


@dataclass(frozen=True)
class TransferKeys:
    """A CURVE key pair (ZeroMQ RFC 26), each half as 40 characters of Z85.

    All processes of a cluster have the same pair: who holds it may read every pool of the cluster.
    """

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "TransferKeys":
        return cls(*zmq.curve_keypair())

    @classmethod
    def load(cls, path: Path) -> "TransferKeys":
        """Reads what `save` wrote. Raises OSError or ValueError that names the file and what is wrong."""
        line = _LINE.fullmatch(read_secret(path, 256))
        try:
            if line is None:
                raise ValueError
            return cls(zmq.curve_public(line[1]), line[1])
        except (ValueError, zmq.ZMQError):
            raise ValueError(f"{path}: expected one line, '{_LABEL} ' and 40 characters of Z85") from None

    def save(self, path: Path) -> None:
        """Writes a new file that only its owner can read; raises FileExistsError rather than replace one.

        The secret half is enough: the public one follows from it.
        """
        write_secret(path, _LABEL.encode() + b" " + self.secret + b"\n")
