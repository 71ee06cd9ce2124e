"""The whole system with its files in S3: on the way there and back, while it is away, when a process dies."""

from __future__ import annotations

import argparse
import signal
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path

import aiohttp
import pytest

from deploy.onebox import OneBox
from deploy.ports import free_port
from orchestrator.client import VideoClient
from tests import s3
from tests.e2e.system import SECONDS, System, completed, submit, until
from tests.ports import role_urls
from tests.s3 import Door, S3Server
from triptych import COMMANDS


class Stored(System):
    """A box whose files go to a bucket, through a door that each test opens."""

    def __init__(self, box: OneBox, log: Path, server: S3Server, bucket: str, door_port: int) -> None:
        super().__init__(box, log)
        self.server, self.bucket, self.door_port = server, bucket, door_port

    def videos(self) -> set[str]:
        return {key for key in self.server.names(self.bucket) if key.endswith(".mp4")}

    def spooled(self) -> list[str]:
        return [path.name for path in (self.box.data_dir / "spool").iterdir()]


def box_of(directory: Path, *words: str) -> OneBox:
    """As ``triptych up`` makes it of its command line."""
    parser = argparse.ArgumentParser()
    import_module(COMMANDS["up"][0]).add_arguments(parser)
    return OneBox.from_arguments(
        parser.parse_args(["--model", "emulated:", "--data-dir", str(directory / "data"), *words])
    )


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Stored]:
    directory = tmp_path_factory.mktemp("box")
    bucket, door_port = s3_server.bucket(), free_port()
    options = s3.options_file(directory / "options.json", f"http://127.0.0.1:{door_port}")
    box = box_of(
        directory,
        *("--port", str(free_port()), "--output", f"s3://{bucket}/some/prefix"),
        *("--output-options", str(options), "--orphan-age", "0.5", "--max-tries", "2"),
    )
    box.role_urls = role_urls({"encoder": 1, "denoiser": 1, "decoder": 1})
    with (directory / "log").open("wb") as log:
        box._log = log
        with box:
            box.wait_ready(SECONDS)
            yield Stored(box, directory / "log", s3_server, bucket, door_port)
    print((directory / "log").read_text())


@pytest.fixture
async def door(system: Stored) -> AsyncIterator[Door]:
    async with Door(system.server, system.door_port) as door:
        yield door


@pytest.fixture
async def client(system: Stored) -> AsyncIterator[VideoClient]:
    async with VideoClient(system.box.url) as client:
        yield client


async def test_from_the_decoder_to_the_client(
    system: Stored, door: Door, client: VideoClient, tmp_path: Path
) -> None:
    (video,) = await submit(client, 1)
    await completed(client, [video])
    (key,) = system.videos()
    assert key.startswith(f"some/prefix/{video['id']}-decode-")
    stored = system.server.get(system.bucket, key)
    path = tmp_path / "video.mp4"
    await client.download(video["id"], path, timeout=SECONDS)
    assert path.read_bytes() == stored
    async with aiohttp.ClientSession() as session:
        url = f"{system.box.url}/v1/videos/{video['id']}/content"
        async with session.get(url, headers={"Range": "bytes=-100"}) as reply:
            assert (reply.status, await reply.read()) == (206, stored[-100:])
        sync = f"{system.box.url}/v1/videos/sync"
        async with session.post(sync, json={"prompt": "p", "seed": 7}) as reply:
            assert reply.status == 200 and (await reply.read())[4:8] == b"ftyp"
    await until(lambda: nothing(system.spooled()))
    assert not (system.box.data_dir / "videos").exists() or not list(
        (system.box.data_dir / "videos").glob("video*")
    )
    assert (await client.delete(video["id"]))["deleted"]
    assert key not in system.videos() and len(system.videos()) == 1


async def nothing(found: list[str] | set[str]) -> bool:
    return not found


async def test_the_decoder_is_killed_between_upload_and_record(
    system: Stored, door: Door, client: VideoClient
) -> None:
    """Its next life offers the file again; or the job has run again, and nothing is left of the first try."""
    before = system.videos()
    door.mute = True
    (video,) = await submit(client, 1)
    await until(lambda: nonempty(door.written))
    assert len(system.videos() - before) == 1, "the store has it, and nobody has heard of it"
    victim = system.process("decoder")
    role, url = victim.name.split()
    victim.kill()
    assert await system.ends(victim) == -signal.SIGKILL
    door.mute = False
    system.box.start_role(role, url)
    await completed(client, [video])
    await until(lambda: nothing(system.spooled()))
    (key,) = system.videos() - before
    assert video["id"] in key


async def nonempty(found: list[str]) -> bool:
    return bool(found)


async def test_the_store_goes_away_and_comes_back(
    system: Stored, door: Door, client: VideoClient, tmp_path: Path
) -> None:
    (old,) = await submit(client, 1)
    await completed(client, [old])
    door.away = True
    videos = await submit(client, 2)
    await until(lambda: refused(door))
    door.away = False
    await completed(client, videos)
    for video in (old, *videos):
        await client.download(video["id"], tmp_path / "video.mp4", timeout=SECONDS)


async def refused(door: Door) -> bool:
    return door.refused > 0


async def test_a_store_that_denies_writing_fails_the_request_alone(
    system: Stored, door: Door, client: VideoClient
) -> None:
    system.server.deny(system.bucket, "s3:PutObject")
    (video,) = await submit(client, 1)
    failed = await client.wait(video["id"], timeout=SECONDS)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "output_store")
    assert "Forbidden" in failed["error"]["message"]
    assert system.box.dead() is None
    system.server.deny(system.bucket)
    await completed(client, await submit(client, 1))
    await until(lambda: nothing(system.spooled()))


async def test_orphans_are_swept(system: Stored, door: Door, client: VideoClient) -> None:
    """What no decoder will ever offer again: its host is gone, with its spool."""
    (video,) = await submit(client, 1)
    await completed(client, [video])
    wanted = system.videos()
    stray = f"some/prefix/video_{'ab' * 16}-decode-1a2b3c4d-1.mp4"
    foreign = "some/prefix/holiday.mp4"
    for key in (stray, foreign):
        system.server.client.put_object(Bucket=system.bucket, Key=key, Body=b"x")

    async def swept() -> bool:
        return stray not in system.videos()

    await until(swept)
    assert system.videos() == wanted | {foreign}
    system.server.client.delete_object(Bucket=system.bucket, Key=foreign)
