"""What the floor's processes send each other: a job's id and its tensor, always of the same size."""

from __future__ import annotations

import xxhash

SERVICE = "floor.Stage"
METHOD = "Work"
ID_BYTES = 32
PAYLOAD_BYTES = 4096  # of Triptych's tiny requests too
BYTES = ID_BYTES + PAYLOAD_BYTES


def message(job: str, payload: bytes) -> bytes:
    return job.encode() + payload


def job_of(message: bytes) -> str:
    return message[:ID_BYTES].decode()


def payload_of(message: bytes) -> bytes:
    return message[ID_BYTES:]


def first_payload(prompt: str) -> bytes:
    """The prompt itself; what is longer is cut."""
    return prompt.encode()[:PAYLOAD_BYTES].ljust(PAYLOAD_BYTES, b"\0")


def digest(payload: bytes | memoryview) -> bytes:
    """Depends on every byte."""
    return xxhash.xxh3_64_digest(payload)


def noise(key: bytes) -> bytes:
    """The tensor that a stage makes of a digest."""
    return key * (PAYLOAD_BYTES // len(key))


def split(frame: bytes) -> list[bytes]:
    """The messages of a frame."""
    return [frame[start : start + BYTES] for start in range(0, len(frame), BYTES)]
