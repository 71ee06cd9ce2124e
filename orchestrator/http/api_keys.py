"""API keys: the words by which clients show that they may use the API, and whose each is."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from transfer.secrets import MAX_TOKEN_CHARS, MIN_TOKEN_CHARS, read_secret

ENVIRONMENT = "TRIPTYCH_API_KEYS"
MAX_KEYS = 1000  # each request is compared with all of them
MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_TOKEN_CHARS},{MAX_TOKEN_CHARS}}}")


class ApiKeys:
    """Keys with the names of those who have them. Only hashes of the keys are kept."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """``names`` by key."""
        self._names = [(_digest(key), name) for key, name in names.items()]

    def name_of(self, given: str) -> str | None:
        """Whose key this is. The time it takes says nothing about how close a wrong one is."""
        digest, found = _digest(given), None
        for known, name in self._names:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def load_api_keys(path: Path | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """The keys of a file, a line each, together with those of ``TRIPTYCH_API_KEYS``, separated by commas;
    each is ``NAME KEY`` or ``KEY``. None if neither is given.

    Raises OSError or ValueError that names the source, the line and what is wrong, never a key. A source
    without any key is an error too: it was given to close the API.
    """
    sources: list[tuple[str, list[str]]] = []
    if path is not None:
        content = read_secret(path, MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"{path}: more than {MAX_FILE_BYTES} bytes")
        try:
            sources.append((f"{path}: line", content.decode("ascii").splitlines()))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {error.start} is not ASCII") from None
    if ENVIRONMENT in environment:
        sources.append((f"{ENVIRONMENT}: entry", re.split(r"[,\n]", environment[ENVIRONMENT])))
    if not sources:
        return None
    names: dict[str, str] = {}
    for source, lines in sources:
        _collect(source, lines, names)
    return ApiKeys(names)


def _collect(source: str, lines: Iterable[str], names: dict[str, str]) -> None:
    before = len(names)
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name = words[0] if len(words) == 2 else f"key{len(names) + 1}"
        if len(words) > 2 or not _NAME.fullmatch(name) or not _KEY.fullmatch(words[-1]):
            raise ValueError(
                f"{source} {number}: expected KEY or NAME KEY: a key of {MIN_TOKEN_CHARS} to"
                f" {MAX_TOKEN_CHARS} printable ASCII characters, a name of at most 64 of A-Z a-z 0-9 . _ -"
            )
        if words[-1] in names:
            raise ValueError(f"{source} {number}: this key is there twice")
        if len(names) == MAX_KEYS:
            raise ValueError(f"{source} {number}: more than {MAX_KEYS} keys")
        names[words[-1]] = name
    if len(names) == before:
        raise ValueError(f"{source.rpartition(':')[0]}: there is no key in it")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
