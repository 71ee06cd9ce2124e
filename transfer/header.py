"""The slot header: 64 bytes before each payload that say which output lies there."""

import struct
from dataclasses import dataclass

from transfer.errors import Corrupt, SlotGone

HEADER_BYTES = 64  # keeps the payload aligned for any vector instruction
MAGIC = b"TRIPTYCH"

_LAYOUT = struct.Struct("<8sQQQ32x")


@dataclass(frozen=True)
class Header:
    """What a producer says of a published payload, and what a reader demands to find."""

    generation: int  # of the slot; grows with every use of the pool
    length: int  # payload bytes
    checksum: int  # xxh3-64 of the payload, or 0 where nobody checks it

    def pack(self) -> bytes:
        return _LAYOUT.pack(MAGIC, self.generation, self.length, self.checksum)

    def check(self, found: bytes | memoryview) -> None:
        """Compares the 64 bytes found before a payload with this, the header that was announced.

        Raises SlotGone if the slot is released or used again, Corrupt for anything else that differs.
        """
        magic, generation, length, checksum = _LAYOUT.unpack(found)
        if magic == bytes(8):
            raise SlotGone(f"generation {self.generation} was released")
        if magic != MAGIC:
            raise Corrupt(f"header starts with {magic!r}, expected {MAGIC!r}")
        if generation != self.generation:
            raise SlotGone(f"slot holds generation {generation}, expected {self.generation}")
        if length != self.length:
            raise Corrupt(f"header says {length} bytes, expected {self.length}")
        if checksum != self.checksum:
            raise Corrupt(f"header says checksum {checksum:#018x}, expected {self.checksum:#018x}")


RELEASED = bytes(HEADER_BYTES)
