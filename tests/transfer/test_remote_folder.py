"""Folders in a store: S3 on loopback, and drivers that show files while they are being written."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests import s3
from tests.s3 import S3Server
from transfer import remote_folder
from transfer.remote_folder import (
    PART_BYTES,
    NoSuchFile,
    RemoteError,
    RemoteFolder,
    load_options,
    local_folder,
)


class Disk(LocalFileSystem):  # type: ignore[misc]
    """Another host's disk, as sftp's driver would show it. The path is one of this host."""

    protocol = ("disk",)
    break_after: int | None = None  # bytes of a copy

    def put_file(self, lpath: str, rpath: str, **kwargs: object) -> None:
        content = Path(lpath).read_bytes()
        Path(rpath).write_bytes(content[: self.break_after])
        if self.break_after is not None:
            raise ConnectionResetError("the line broke")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteFolder:
    fsspec.register_implementation("disk", Disk, clobber=True)
    return RemoteFolder(f"disk://{tmp_path}/far")


def source(tmp_path: Path, content: bytes = b"frames") -> Path:
    path = tmp_path / "source.mp4"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("videos", "videos"),
        ("/srv/videos", "/srv/videos"),
        ("file:///srv/my%20videos", "/srv/my videos"),
        ("file://localhost/srv", "/srv"),
        ("s3://bucket/x", None),
    ],
)
def test_folders_of_this_host(output: str, folder: str | None) -> None:
    assert local_folder(output) == (None if folder is None else Path(folder))


def test_a_file_url_names_no_other_host() -> None:
    with pytest.raises(ValueError, match=r"file://host/srv: expected file:///PATH"):
        local_folder("file://host/srv")


@pytest.mark.parametrize(
    "url", ["s3:/x", "s3://", "S3://bucket", "file:///srv", "simplecache::s3://bucket", "s3://b\nc"]
)
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a store"):
        RemoteFolder(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("memory:///", "expected a bucket"),
        ("nonsense://bucket", "Protocol not known: nonsense"),
        ("gs://bucket", "its driver is not installed"),
    ],
)
def test_what_cannot_be_opened_is_named(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^{url}: .*{why}"):
        RemoteFolder(url)


def test_options_are_secret(tmp_path: Path) -> None:
    path = s3.options_file(tmp_path / "options.json", "http://127.0.0.1:9")
    assert load_options(path)["key"] == s3.KEY
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="open to others"):
        load_options(path)
    path.chmod(0o600)
    for text in ("[1]", "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"JSON object|delimiter|property name"):
            load_options(path)


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "s3://bucket/a/b/", "s3a://bucket/a/b"])
def test_equal_folders_have_equal_urls(url: str) -> None:
    assert RemoteFolder(url).url == "s3://bucket/a/b"


def test_files_in_s3(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    folder = s3.folder(s3_server, bucket)
    assert list(folder.entries()) == []
    folder.put(source(tmp_path), "a.mp4")
    folder.write("note", b"text")
    assert s3_server.names(bucket) == {"videos/a.mp4", "videos/note"}
    assert (folder.read("a.mp4"), folder.read("a.mp4", 1, 3)) == (b"frames", b"ram")
    assert s3_server.client.head_object(Bucket=bucket, Key="videos/a.mp4")["ContentType"] == "video/mp4"
    entries = {entry.name: entry.modified for entry in folder.entries()}
    assert entries.keys() == {"a.mp4", "note"}
    assert all(modified and abs(time.time() - modified) < 60 for modified in entries.values())
    with pytest.raises(RemoteError, match="2 bytes at 4, expected 9"):
        folder.read("a.mp4", 4, 9)
    for _ in range(2):
        folder.remove("a.mp4")
    assert s3_server.names(bucket) == {"videos/note"}
    with pytest.raises(NoSuchFile, match=rf"^s3://{bucket}/videos/a.mp4: "):
        folder.read("a.mp4", 0, 1)


def test_a_large_file_goes_in_parts(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    content = bytes(range(256)) * (2 * PART_BYTES // 256 + 1)
    s3.folder(s3_server, bucket).put(source(tmp_path, content), "a.mp4")
    assert s3_server.client.head_object(Bucket=bucket, Key="videos/a.mp4")["ETag"].endswith('-3"')
    assert s3_server.get(bucket, "videos/a.mp4") == content


def test_links_need_no_key(s3_server: S3Server, tmp_path: Path) -> None:
    folder = s3.folder(s3_server, s3_server.bucket())
    folder.put(source(tmp_path), "a.mp4")
    link = folder.link("a.mp4", 60.0, 'attachment; filename="video.mp4"')
    assert link is not None and "X-Amz-Expires=60" in link and "AWS4-HMAC-SHA256" in link
    with urllib.request.urlopen(link, timeout=10) as reply:
        assert reply.read() == b"frames"
        assert reply.headers["Content-Disposition"] == 'attachment; filename="video.mp4"'


def test_what_asking_again_does_not_help(s3_server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"^s3://no-bucket/videos/a.mp4: ") as missing:
        s3.folder(s3_server, "no-bucket").put(source(tmp_path), "a.mp4")
    bucket = s3_server.bucket()
    s3_server.deny(bucket, "s3:PutObject")
    with pytest.raises(RemoteError, match="Forbidden") as denied:
        s3.folder(s3_server, bucket).put(source(tmp_path), "a.mp4")
    assert missing.value.lasting and denied.value.lasting
    s3_server.deny(bucket)
    s3.folder(s3_server, bucket).put(source(tmp_path), "a.mp4")


async def test_a_store_that_is_silent(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver alone waits for ever."""
    monkeypatch.setattr(remote_folder, "CALL_SECONDS", 0.2)
    async with s3.Door(s3_server) as door:
        door.silent = True
        folder = s3.folder(door, s3_server.bucket())
        for call in (lambda: folder.put(source(tmp_path), "a.mp4"), lambda: folder.remove("a.mp4")):
            with pytest.raises(RemoteError, match=r"no answer within 0\.2"):
                await asyncio.to_thread(call)


async def test_a_store_that_is_away_or_full(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    async with s3.Door(s3_server) as door:
        folder = s3.folder(door, bucket)
        for state in ("away", "full"):
            setattr(door, state, True)
            with pytest.raises(RemoteError, match=rf"^s3://{bucket}/videos/a.mp4: ") as failed:
                await asyncio.to_thread(folder.put, source(tmp_path), "a.mp4")
            assert not failed.value.lasting
            setattr(door, state, False)
        assert s3_server.names(bucket) == set()
        await asyncio.to_thread(folder.put, source(tmp_path), "a.mp4")
    assert s3_server.names(bucket) == {"videos/a.mp4"}


def test_a_disk_shows_files_when_they_are_whole(
    disk: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far"
    monkeypatch.setattr(Disk, "break_after", 3)
    with pytest.raises(RemoteError, match="the line broke"):
        disk.put(source(tmp_path), "a.mp4")
    assert [path.name for path in far.iterdir()] == ["a.mp4.part"]
    monkeypatch.setattr(Disk, "break_after", None)
    disk.put(source(tmp_path), "a.mp4")
    assert [path.name for path in far.iterdir()] == ["a.mp4"]
    assert disk.read("a.mp4", 2, 3) == b"ame"
    ((name, modified),) = [(entry.name, entry.modified) for entry in disk.entries()]
    assert name == "a.mp4" and modified is not None and abs(time.time() - modified) < 60
    assert disk.link("a.mp4", 60.0) is None
    disk.remove("a.mp4")
    assert list(far.iterdir()) == []


def test_a_store_that_has_another_size(
    disk: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: Disk, lpath: str, rpath: str, **kwargs: object) -> None:
        Path(rpath).write_bytes(Path(lpath).read_bytes()[:-1])

    monkeypatch.setattr(Disk, "put_file", short)
    with pytest.raises(RemoteError, match="has 5 bytes of 6"):
        disk.put(source(tmp_path), "a.mp4")
