"""Thumbnails and contact sheets of real MP4 files: from the disk and from the decoder's stream."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from aiohttp import test_utils
from PIL import Image

from orchestrator import pictures, previews
from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job
from services.media.video import VideoWriter
from tests.cluster import Cluster
from tests.orchestrator.http.conformance import Conformance
from tests.orchestrator.http.service import MemoryService

FRAMES = 9
COLOURS = [(28 * index, 255 - 28 * index, 128) for index in range(FRAMES)]  # one for each frame


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.zeros((FRAMES, 60, 800, 3), np.uint8)
    for frame, colour in zip(frames, COLOURS, strict=True):
        frame[:] = colour
    with VideoWriter(path, 800, 60, 8.0) as writer:
        writer.write(frames)
        writer.finish()
    return path


@pytest.fixture(params=["file", "decoder"])
def job(request: pytest.FixtureRequest, service: MemoryService, video: Path) -> Job:
    job = service.add()
    service.complete(job, video.read_bytes())
    service.path = video if request.param == "file" else None
    return job


def url(job: Job, variant: str) -> str:
    return f"/v1/videos/{job.id}/content?variant={variant}"


def kept(service: MemoryService) -> list[str]:
    return sorted(os.listdir(service.previews._folder))


def assert_colour(image: Image.Image, at: tuple[int, int], index: int) -> None:
    pixel = image.convert("RGB").getpixel(at)
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) < 14 for a, b in zip(pixel, COLOURS[index], strict=True)), (pixel, COLOURS[index])


async def test_a_thumbnail_is_the_middle_frame(api: test_utils.TestClient, job: Job) -> None:
    response = await api.get(url(job, "thumbnail"))
    assert (response.status, response.headers["Content-Type"]) == (200, "image/webp")
    assert response.headers["Content-Disposition"] == f'attachment; filename="{job.id}.webp"'
    image = Image.open(io.BytesIO(await response.read()))
    assert (image.format, image.size) == ("WEBP", (512, 38))
    assert_colour(image, (200, 20), FRAMES // 2)


async def test_a_sheet_has_the_frames_in_rows(api: test_utils.TestClient, job: Job) -> None:
    response = await api.get(url(job, "spritesheet"))
    assert (response.status, response.headers["Content-Type"]) == (200, "image/jpeg")
    image = Image.open(io.BytesIO(await response.read()))
    assert (image.format, image.size) == ("JPEG", (3 * 256, 3 * 19))
    for index in range(FRAMES):
        assert_colour(image, (index % 3 * 256 + 128, index // 3 * 19 + 10), index)


async def test_ranges_validators_and_head(api: test_utils.TestClient, job: Job) -> None:
    whole = await api.get(url(job, "thumbnail"))
    data, tag = await whole.read(), whole.headers["ETag"]
    part = await api.get(url(job, "thumbnail"), headers={"Range": "bytes=5-9"})
    assert (part.status, await part.read()) == (206, data[5:10])
    head = await api.head(url(job, "thumbnail"))
    assert (head.status, head.content_length) == (200, len(data))
    assert (await api.get(url(job, "thumbnail"), headers={"If-None-Match": tag})).status == 304
    outside = await api.get(url(job, "thumbnail"), headers={"Range": f"bytes={len(data)}-"})
    assert (outside.status, (await outside.json())["error"]["type"]) == (416, "invalid_request_error")


async def test_it_is_made_once(
    api: test_utils.TestClient, service: MemoryService, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    render = pictures.render
    monkeypatch.setattr(pictures, "render", lambda *args: calls.append(args[2]) or render(*args))
    replies = await asyncio.gather(*(api.get(url(job, "thumbnail")) for _ in range(8)))
    assert len({await reply.read() for reply in replies}) == 1
    assert (await api.get(url(job, "thumbnail"))).status == 200
    assert calls == ["thumbnail"]
    assert kept(service) == [f"{job.id}.thumbnail.webp"]
    (service.previews._folder / kept(service)[0]).unlink()  # it can be made again
    assert (await api.get(url(job, "thumbnail"))).status == 200


async def test_nothing_stays_of_a_deleted_job(
    api: test_utils.TestClient, service: MemoryService, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.get(url(job, "spritesheet"))
    began, go_on = threading.Event(), threading.Event()
    render = pictures.render

    def slow(*args: object) -> bytes:
        began.set()
        assert go_on.wait(20)
        return render(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "render", slow)
    asking = asyncio.ensure_future(api.get(url(job, "thumbnail")))
    assert await asyncio.to_thread(began.wait, 20)
    await api.delete(f"/v1/videos/{job.id}")
    go_on.set()
    assert (await asking).status == 404
    assert kept(service) == []


async def test_only_so_many_wait(
    api: test_utils.TestClient, service: MemoryService, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "MAX_WAITING", 0)
    response = await api.get(url(job, "thumbnail"))
    assert (response.status, response.headers["Retry-After"]) == (503, "5")


async def test_the_folder_is_bounded(service: MemoryService, video: Path) -> None:
    service.path = video
    jobs = [service.add() for _ in range(4)]
    for job in jobs:
        service.complete(job, video.read_bytes())
    thumbnail = previews.VARIANTS["thumbnail"]
    size = (await service.previews.path(jobs[0], thumbnail)).stat().st_size
    service.previews._max_bytes = 2 * size
    for number, job in enumerate(jobs):
        path = await service.previews.path(job, thumbnail)
        os.utime(path, ns=(number, path.stat().st_mtime_ns))
        if number == 2:  # used again: so it is not the first to go
            os.utime(await service.previews.path(jobs[1], thumbnail), ns=(9, 9))
    assert kept(service) == sorted(f"{job.id}.thumbnail.webp" for job in (jobs[1], jobs[3]))
    await service.previews.keep([jobs[3].id])
    assert kept(service) == [f"{jobs[3].id}.thumbnail.webp"]


@pytest.mark.parametrize("data", [b"", b"no video", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"])
async def test_a_file_that_is_no_video(
    api: test_utils.TestClient, service: MemoryService, data: bytes
) -> None:
    job = service.add()
    service.complete(job, data)
    for variant in previews.VARIANTS:
        response = await api.get(url(job, variant))
        assert (response.status, (await response.json())["error"]["code"]) == (422, "no_preview")
    assert kept(service) == []


async def test_fewer_frames_than_were_reported(api: test_utils.TestClient, job: Job) -> None:
    assert job.file is not None
    job.file.num_frames = 2**32 - 1
    image = Image.open(io.BytesIO(await (await api.get(url(job, "thumbnail"))).read()))
    assert_colour(image, (200, 20), FRAMES - 1)
    image = Image.open(io.BytesIO(await (await api.get(url(job, "spritesheet"))).read()))
    assert image.size == (256, 19)


async def test_a_decoder_that_is_away(
    api: test_utils.TestClient, service: MemoryService, video: Path
) -> None:
    job = service.add()
    service.complete(job, video.read_bytes())
    service.break_after = 0
    response = await api.get(url(job, "thumbnail"))
    assert (response.status, (await response.json())["error"]["code"]) == (503, "file_unavailable")
    service.break_after = 1000
    response = await api.get(url(job, "thumbnail"))
    assert (response.status, (await response.json())["error"]["code"]) == (503, "no_preview")
    service.break_after = None
    assert (await api.get(url(job, "thumbnail"))).status == 200
    assert kept(service) == [f"{job.id}.thumbnail.webp"]


async def test_a_folder_that_cannot_be_written(api: test_utils.TestClient, service: MemoryService) -> None:
    service.previews._folder = Path("/dev/null/previews")
    job = service.add()
    service.complete(job, b"x")
    response = await api.get(url(job, "thumbnail"))
    assert (response.status, (await response.json())["error"]["code"]) == (503, "no_preview")


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(
    ("model", "format", "content_type", "suffix"),
    [
        ("emulated:sound=24000", "webm", "video/webm", "webm"),
        ("emulated:output=image", "", "image/png", "png"),
        ("emulated:output=image", "jpeg", "image/jpeg", "jpg"),
        ("emulated:output=image", "webp", "image/webp", "webp"),
    ],
)
async def test_other_formats_from_a_real_decoder(
    tmp_path: Path, model: str, format: str, content_type: str, suffix: str, away: bool
) -> None:
    cluster = Cluster(tmp_path, output_dir=tmp_path / ("elsewhere" if away else "videos"))
    for instance in cluster.roles:
        instance.model = model
    async with cluster:
        app = create_app(cluster.orchestrator, HttpOptions())
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            job = await cluster.submit("p", format=format, width=640)
            assert await cluster.orchestrator.finished(job.id) is job
            response = await api.get(f"/v1/videos/{job.id}/content")
            assert (response.status, response.headers["Content-Type"]) == (200, content_type)
            assert response.headers["Content-Disposition"] == f'attachment; filename="{job.id}.{suffix}"'
            (file,) = (tmp_path / "videos").glob(f"*.{suffix}")
            assert await response.read() == file.read_bytes()
            images = []
            for variant, kind, size in (("thumbnail", "WEBP", (512, 51)), ("spritesheet", "JPEG", None)):
                response = await api.get(url(job, variant))
                image = Image.open(io.BytesIO(await response.read()))
                assert image.format == kind
                assert size is None or image.size == size
                images.append(image.convert("RGB"))
            if content_type.startswith("image/"):  # one cell
                assert images[1].size == (256, 26)
                original = Image.open(file).convert("RGB").getpixel((320, 32))
                for image in images:
                    found = image.getpixel((100, 10))
                    assert isinstance(found, tuple) and isinstance(original, tuple)
                    assert all(abs(a - b) < 8 for a, b in zip(found, original, strict=True))
            else:
                assert images[1].size == (3 * 256, 2 * 26)
        await cluster.slots_back()


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp", "video/webm", "audio/aac"])
async def test_a_file_that_is_not_what_it_says(
    api: test_utils.TestClient, job: Job, content_type: str
) -> None:
    assert job.file is not None
    job.file.content_type = content_type
    for variant in previews.VARIANTS:
        response = await api.get(url(job, variant))
        assert (response.status, (await response.json())["error"]["code"]) == (422, "no_preview")


async def test_with_a_real_orchestrator(tmp_path: Path, conformance: Conformance) -> None:
    folder = tmp_path / "previews"
    async with Cluster(tmp_path, output_dir=tmp_path / "elsewhere") as cluster:  # over the decoder's stream
        folder.mkdir()
        (folder / "video_of_an_earlier_life.thumbnail.webp").write_bytes(b"x")
        app = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            job = await cluster.submit("p")
            assert await cluster.orchestrator.finished(job.id) is job
            response = await api.get(url(job, "thumbnail"))
            assert Image.open(io.BytesIO(await response.read())).format == "WEBP"
            await cluster.orchestrator.previews.keep(cluster.orchestrator._jobs.keys())
            assert os.listdir(folder) == [f"{job.id}.thumbnail.webp"]
            await api.delete(f"/v1/videos/{job.id}")
            assert os.listdir(folder) == []
        await cluster.slots_back()
