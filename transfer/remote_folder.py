"""A folder of files in a store that fsspec reaches: S3 and its like, or another host's disk.

Knows nothing of what the files are. Blocks, so it is called off the event loop; any thread may.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from transfer.secrets import read_secret

MAX_OPTIONS_BYTES = 64 * 1024
CALL_SECONDS = 30.0  # for the store's answer; for all of a file's bytes more, at this rate
SLOWEST_BYTES_PER_SECOND = 1 << 20
LIST_SECONDS = 600.0  # for all names of a folder
PART_BYTES = 16 << 20  # of an upload in parts, of which PARTS are in memory at once
PARTS = 4

T = TypeVar("T")

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://[\x21-\x7e]+")
_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
# Where an upload shows whole or not at all. Elsewhere the file takes its name once it is whole.
_WHOLE = (*_S3, "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class RemoteError(Exception):
    """A store did not do what it was asked for. ``lasting``: asking again will not help."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class NoSuchFile(RemoteError):
    """The store answers, and the file, or the bucket, is not there."""


@dataclass(frozen=True)
class Entry:
    """A file of a folder."""

    name: str
    modified: float | None  # seconds since the epoch, on the store's clock; None: it does not say


def local_folder(output: str) -> Path | None:
    """The folder of this host that a plain path or a ``file://`` URL means; None for any other URL."""
    if "://" not in output:
        return Path(output)
    url = urlsplit(output)
    if url.scheme not in _LOCAL:
        return None
    if url.netloc not in ("", "localhost"):
        raise ValueError(f"{output}: expected file:///PATH, without a host")
    return Path(unquote(url.path))


def load_options(path: Path) -> dict[str, Any]:
    """What a driver is to be given, from a JSON file. Raises OSError or ValueError that names the file."""
    content = read_secret(path, MAX_OPTIONS_BYTES)
    try:
        options = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected a JSON object of options for the store's driver")
    return options


class RemoteFolder:
    """``url`` is canonical: equal folders have equal URLs, without credentials."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """``options`` are the driver's own. Raises ValueError for a URL that is none, a driver that is not
        installed and options it does not take.
        """
        match = _URL.fullmatch(url)
        if match is None or match[1] in _LOCAL or "::" in url:
            raise ValueError(f"{url!r} is not the URL of a store, as s3://BUCKET/PREFIX is")
        self._scheme = match[1]
        given = dict(options or {})
        if self._scheme in _S3:  # what a bare boto signs links by, servers refuse by now
            given["config_kwargs"] = {"signature_version": "s3v4", **given.get("config_kwargs", {})}
        try:
            import fsspec

            self._fs, path = fsspec.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **given
            )
            self._path = path.rstrip("/")
            self.url: str = self._fs.unstrip_protocol(self._path)
        except ImportError as error:
            extra = "; is triptych[s3] installed?" if self._scheme in _S3 else ""
            raise ValueError(f"{url}: its driver is not installed: {error}{extra}") from error
        except Exception as error:  # of the driver: they have no base class
            raise ValueError(f"{url}: {error}") from error
        if not self._path.strip("/"):
            raise ValueError(f"{url}: expected a bucket, or a folder")

    def __repr__(self) -> str:
        return self.url

    def put(self, source: Path, name: str) -> None:
        """Copies the file ``source``: ``name`` is there whole on return, and else not at all, or as before.

        Raises RemoteError, also when the store then tells of another size.
        """
        path, kwargs = self._file(name), {}
        with self._errors(name):
            size = source.stat().st_size
            if self._scheme in _S3:  # else 500 MB would be in memory
                kwargs = {"chunksize": PART_BYTES, "max_concurrency": PARTS}
            if self._scheme in _WHOLE:
                self._call("put_file", str(source), path, nbytes=size, **kwargs)
            else:
                self._fs.makedirs(self._path, exist_ok=True)
                self._call("put_file", str(source), f"{path}.part", nbytes=size)
                self._check(f"{name}.part", size)
                self._fs.mv(f"{path}.part", path)
            self._check(name, size)

    def write(self, name: str, content: bytes) -> None:
        """A small file. Raises RemoteError."""
        with self._errors(name):
            if self._scheme not in _WHOLE:
                self._fs.makedirs(self._path, exist_ok=True)
            self._call("pipe_file", self._file(name), content)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes, or to the end. Raises RemoteError, also when there are fewer."""
        end = None if length is None else offset + length
        with self._errors(name):
            content: bytes = self._call(
                "cat_file", self._file(name), start=offset, end=end, nbytes=length or 0
            )
        if length is not None and len(content) != length:
            raise RemoteError(f"{self.url}/{name}: {len(content)} bytes at {offset}, expected {length}", True)
        return content

    def remove(self, name: str) -> None:
        """A file that is not there is no error. Raises RemoteError."""
        with suppress(NoSuchFile), self._errors(name):
            self._call("rm_file", self._file(name))

    def entries(self) -> Iterator[Entry]:
        """The files of the folder; none if there is no such folder. Raises RemoteError."""
        try:
            with self._errors(""):
                found = self._call("ls", self._path, detail=True, seconds=LIST_SECONDS)
        except NoSuchFile:
            return
        for info in found:
            if info["type"] == "file":
                yield Entry(info["name"].rstrip("/").rpartition("/")[2], _modified(info))

    def link(self, name: str, seconds: float, disposition: str = "") -> str | None:
        """An HTTP URL at which anybody can read the file for a time; None where the store has no such.

        ``disposition`` is the ``Content-Disposition`` that it is to be answered with, if the store does that.
        Raises RemoteError.
        """
        extra = {"ResponseContentDisposition": disposition} if disposition and self._scheme in _S3 else {}
        try:
            with self._errors(name):
                link = self._fs.sign(self._file(name), expiration=max(int(seconds), 1), **extra)
        except NotImplementedError:
            return None
        return str(link) if str(link).startswith(("http://", "https://")) else None

    def _check(self, name: str, size: int) -> None:
        found = self._call("info", self._file(name))["size"]
        if found != size:
            raise RemoteError(f"{self.url}/{name}: the store has {found} bytes of {size}")

    def _call(
        self, method: str, *args: object, nbytes: int = 0, seconds: float | None = None, **kwargs: object
    ) -> Any:
        """Drivers that are asynchronous inside are cut off: with timeouts of their own they can still wait
        for ever, as for a ``100 Continue``. The others have none but their own.
        """
        if not self._fs.async_impl:
            return getattr(self._fs, method)(*args, **kwargs)
        from fsspec.asyn import sync

        limit = (seconds or CALL_SECONDS) + nbytes // SLOWEST_BYTES_PER_SECOND
        return sync(self._fs.loop, _limited, getattr(self._fs, f"_{method}"), limit, args, kwargs)

    def _file(self, name: str) -> str:
        return f"{self._path}/{name}"

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Drivers raise what they like."""
        what = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except (RemoteError, NotImplementedError):
            raise
        except FileNotFoundError as error:
            raise NoSuchFile(f"{what}: {_text(error)}", lasting=True) from error
        except Exception as error:
            lasting = isinstance(error, PermissionError)
            raise RemoteError(f"{what}: {_text(error)}", lasting) from error


async def _limited(
    function: Callable[..., Awaitable[T]], seconds: float, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> T:
    try:
        return await asyncio.wait_for(function(*args, **kwargs), seconds)
    except asyncio.TimeoutError:
        raise ConnectionError(f"no answer within {seconds:g} s") from None


def _text(error: Exception) -> str:
    """One line; of an OSError without its number."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return " ".join(text.split())[:400]


def _modified(info: Mapping[str, Any]) -> float | None:
    value = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None
