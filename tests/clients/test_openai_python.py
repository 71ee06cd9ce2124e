"""OpenAI's Python SDK, unchanged: every call that its users make. Two majors run these same tests."""

from __future__ import annotations

import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Video

from tests.clients.environments import OPENAI_2, ROOT, need
from tests.clients.receiver import receiving
from tests.clients.servers import Servers

# Every method of videos has a deprecation note: OpenAI's own service ends, the wire format lives on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VERSIONS = {"3": "3.52.0", "2": "2.54.0"}
SECONDS = 60.0
PNG = b"\x89PNG\r\n\x1a\n" + bytes(4)  # what it begins with
MAGIC = {"video": b"ftyp", "thumbnail": b"WEBP", "spritesheet": b"\xff\xd8\xff"}  # in the first 16 bytes


@pytest.fixture
def client(system: Servers) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


@pytest.fixture
def keyed(system: Servers) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{system.keyed_url}/v1", api_key=system.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
def stalled(system: Servers) -> Iterator[OpenAI]:
    """Its videos are deleted at the end, so that others may wait there."""
    with OpenAI(base_url=f"{system.stalled_url}/v1", api_key="none", max_retries=0) as client:
        yield client
        for video in list(client.videos.list()):
            client.videos.delete(video.id)


def made(client: OpenAI, **fields: Any) -> Video:
    """A completed video."""
    video = client.videos.create_and_poll(prompt="a red circle", poll_interval_ms=20, **fields)
    assert video.status == "completed", video.error
    return video


def extra(video: object) -> dict[str, Any]:
    """What a reply has beside the SDK's own fields."""
    found = getattr(video, "model_extra", None)
    assert isinstance(found, dict)
    return found


def test_the_version_is_a_pinned_one() -> None:
    assert openai.__version__ in VERSIONS.values()


def test_create_needs_a_prompt_alone(client: OpenAI, system: Servers) -> None:
    video = client.videos.create(prompt="a red circle")
    assert video.object == "video" and video.status in ("queued", "in_progress", "completed")
    assert (video.model, video.size, video.seconds) == (system.model, "64x64", "0.625")
    assert isinstance(video.created_at, int) and isinstance(video.progress, int)
    assert video._request_id
    ended = client.videos.poll(video.id, poll_interval_ms=20)
    assert (ended.status, ended.progress, ended.error) == ("completed", 100, None)
    assert isinstance(ended.completed_at, int) and isinstance(ended.expires_at, int)
    assert client.videos.retrieve(video.id) == ended


def test_poll_waits_as_long_as_it_likes_by_itself(client: OpenAI) -> None:
    video = client.videos.create(prompt="a red circle")
    assert client.videos.poll(video.id).status == "completed"


def test_extra_body_carries_every_further_field(client: OpenAI, system: Servers) -> None:
    video = made(
        client,
        model=system.model,
        size="96x64",
        seconds="1",
        extra_body={
            "negative_prompt": "blurry, low quality",
            "num_inference_steps": 6,
            "guidance_scale": 7.5,
            "seed": 42,
            "priority": 1,
            "extra_params": {"fps": 16},
        },
    )
    assert (video.size, video.seconds, video.model) == ("96x64", "1.0625", system.model)
    more = extra(video)
    assert (more["seed"], more["fps"], more["num_frames"], more["priority"]) == (42, 16, 17, 1)
    assert more["inference_time_s"] > 0 and more["peak_memory_mb"] > 0
    assert more["url"] == f"{system.url}/v1/videos/{video.id}/content"


def test_the_same_request_gives_the_same_frames(client: OpenAI) -> None:
    hashes = [extra(made(client, extra_body={"seed": seed}))["frames_xxh3"] for seed in (7, 7, 8)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "fields",
    [
        {"input_reference": ("first.png", PNG, "image/png")},
        {"input_reference": PNG},
        {"extra_body": {"reference_url": "https://pictures.example/first.png"}},
        {"extra_body": {"input_reference": {"image_url": "https://pictures.example/first.png"}}},
    ],
    ids=["file", "bytes", "reference_url", "image_url"],
)
def test_reference_images_are_refused_by_a_model_that_takes_none(
    client: OpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match="takes no reference images") as caught:
        client.videos.create(prompt="a red circle", **fields)
    name = "reference_url" if "reference_url" in fields.get("extra_body", {}) else "input_reference"
    assert (caught.value.code, caught.value.param) == ("unsupported_field", name)


def test_the_sdk_itself_fails_on_reference_images_by_url(client: OpenAI) -> None:
    """Known of both majors: nothing is sent. When it passes, docs/clients.md can say so."""
    with pytest.raises(RuntimeError):
        client.videos.create(prompt="a", input_reference={"image_url": "https://pictures.example/a.png"})


def test_pages_and_iteration(client: OpenAI) -> None:
    ids = [client.videos.create(prompt=f"video {number}").id for number in range(5)]
    page = client.videos.list(limit=2)
    assert [video.id for video in page.data] == ids[:2:-1] and page.has_next_page()
    assert [video.id for video in page.get_next_page().data] == ids[2:0:-1]
    assert [video.id for video in islice(client.videos.list(limit=2), 5)] == ids[::-1]
    after = client.videos.list(after=ids[1], limit=2, order="asc")
    assert [video.id for video in after] == ids[2:]
    last = client.videos.list(after=ids[-1], order="asc")
    assert last.data == [] and not last.has_next_page()
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.list(limit=1000)
    assert caught.value.param == "limit"


def test_delete(client: OpenAI, stalled: OpenAI) -> None:
    finished, running = made(client), stalled.videos.create(prompt="a red circle")
    for owner, video in ((client, finished), (stalled, running)):
        gone = owner.videos.delete(video.id)
        assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
        for call in (owner.videos.retrieve, owner.videos.delete, owner.videos.download_content):
            with pytest.raises(openai.NotFoundError) as caught:
                call(video.id)
            assert caught.value.code == "video_not_found"


@pytest.mark.parametrize("variant", [None, *MAGIC])
def test_download(client: OpenAI, variant: Any, tmp_path: Path) -> None:
    given = {} if variant is None else {"variant": variant}
    video, path = made(client), tmp_path / "file"
    content = client.videos.download_content(video.id, **given)
    content.write_to_file(path)
    assert MAGIC[variant or "video"] in path.read_bytes()[:16]
    with client.videos.with_streaming_response.download_content(video.id, **given) as reply:
        assert int(reply.headers["content-length"]) == path.stat().st_size
        assert b"".join(reply.iter_bytes(chunk_size=100)) == path.read_bytes() == content.content


def test_download_of_what_is_not_there(client: OpenAI, stalled: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as variant:
        client.videos.download_content(made(client).id, variant="poster")  # type: ignore[arg-type]
    assert variant.value.param == "variant"
    with pytest.raises(openai.NotFoundError) as early:
        stalled.videos.download_content(stalled.videos.create(prompt="a red circle").id)
    assert early.value.code == "video_not_ready"


def test_a_video_that_fails(stalled: OpenAI) -> None:
    """A failed job is no failed poll, and its content has its own status."""
    video = stalled.videos.create_and_poll(
        prompt="a red circle", poll_interval_ms=50, extra_body={"timeout": 1}
    )
    assert video.status == "failed" and video.error is not None
    assert (video.error.code, video.error.message) == ("timeout", "not finished within 1 s")
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        stalled.videos.download_content(video.id)
    assert caught.value.code == "video_failed"


def test_remix(client: OpenAI, stalled: OpenAI) -> None:
    source = made(client, size="96x64", extra_body={"seed": 3})
    remix = client.videos.poll(client.videos.remix(source.id, prompt="a blue square").id, poll_interval_ms=20)
    assert (remix.status, remix.remixed_from_video_id) == ("completed", source.id)
    assert (remix.prompt, remix.size, extra(remix)["seed"]) == ("a blue square", "96x64", 3)
    waiting = stalled.videos.create(prompt="a red circle")
    with pytest.raises(openai.ConflictError) as caught:
        stalled.videos.remix(waiting.id, prompt="a blue square")
    assert caught.value.code == "video_not_ready"


def test_what_no_model_does_is_not_found(client: OpenAI) -> None:
    clip = ("clip.mp4", b"\0\0\0\x18ftypmp42", "video/mp4")
    for call in (
        lambda: client.videos.edit(prompt="a", video=clip),
        lambda: client.videos.extend(prompt="a", seconds="4", video=clip),
        lambda: client.videos.create_character(name="a", video=clip),
        lambda: client.videos.get_character("char_1"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code in ("not_supported", "not_found") and caught.value.request_id


def test_images_are_refused_by_a_model_of_videos(client: OpenAI, system: Servers) -> None:
    for call in (
        lambda: client.images.generate(prompt="a", model=system.model, size="1024x1024", n=1),
        lambda: client.images.edit(prompt="a", image=("a.png", PNG, "image/png")),
        lambda: client.images.edit(prompt="a", image=[("a.png", PNG), ("b.png", PNG)]),
    ):
        with pytest.raises(openai.BadRequestError, match="/v1/videos") as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_makes_videos", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(prompt="a", image=PNG, mask=("m.png", PNG))
    assert (caught.value.code, caught.value.param) == ("unsupported_field", "mask")


def test_models(client: OpenAI, system: Servers) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    assert (model.id, model.object, model.owned_by) == (system.model, "model", "triptych")
    for call in (
        lambda: client.models.retrieve("nobody/nothing"),
        lambda: client.videos.create(prompt="a", model="nobody/nothing"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": " "}, "prompt", "invalid_value"),
        ({"size": "wide"}, "size", "invalid_value"),
        ({"size": "63x64"}, "size", "invalid_value"),
        ({"seconds": "600"}, "seconds", "invalid_value"),
        ({"extra_body": {"seed": "seven"}}, "seed", "invalid_value"),
        ({"extra_body": {"lora": {"name": "a"}}}, "lora", "unsupported_field"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_field"),
    ],
)
def test_a_bad_field_is_named(client: OpenAI, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(**{"prompt": "a red circle", **fields})
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.status_code == 400 and error.request_id
    assert param in error.message


def test_a_body_that_is_too_large(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.videos.create(prompt="a" * (33 << 20))
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")


def test_a_full_queue(stalled: OpenAI) -> None:
    for _ in range(2):
        stalled.videos.create(prompt="a red circle")
    with pytest.raises(openai.RateLimitError) as caught:
        stalled.videos.create(prompt="a red circle")
    assert caught.value.type == "rate_limit_error" and int(caught.value.response.headers["retry-after"]) > 0


def test_an_idempotency_key_makes_one_video(client: OpenAI) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = client.videos.create(prompt="a red circle", extra_headers=headers)
    again = client.with_options(max_retries=2).videos
    assert again.create(prompt="a red circle", extra_headers=headers).id == first.id
    with pytest.raises(openai.ConflictError) as caught:  # at once, though the SDK repeats a 409 by default
        again.create(prompt="a blue square", extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_webhook_is_unwrapped(client: OpenAI, system: Servers) -> None:
    url = f"http://127.0.0.1:{system.webhook_port}/hook"
    with receiving(system.webhook_port) as received:
        video = client.videos.create(prompt="a red circle", extra_body={"webhook_url": url})
        headers, body = received.get(timeout=SECONDS)
    event = client.webhooks.unwrap(body, headers, secret=system.webhook_secret)
    assert event.type == "video.completed" and event.data.id == video.id
    assert client.videos.retrieve(event.data.id).status == "completed"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers, secret=system.webhook_secret)


def test_with_api_keys(keyed: OpenAI, system: Servers) -> None:
    assert [model.id for model in keyed.models.list()] == [system.model]
    video = made(keyed)
    content = keyed.videos.download_content(video.id).content
    with urllib.request.urlopen(extra(video)["url"], timeout=SECONDS) as reply:  # shows no key
        assert reply.read() == content
    stranger = keyed.with_options(api_key="a-key-of-nobody-here")
    for call in (
        lambda: stranger.videos.create(prompt="a red circle"),
        lambda: stranger.videos.retrieve(video.id),
        lambda: stranger.videos.download_content(video.id),
        lambda: stranger.models.list(),
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            call()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")


async def test_the_asynchronous_client(system: Servers, tmp_path: Path) -> None:
    async with openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as client:
        video = await client.videos.create_and_poll(prompt="a red circle", poll_interval_ms=20)
        assert video.status == "completed"
        assert [item.id async for item in client.videos.list(limit=1, after=video.id, order="asc")] == []
        path = tmp_path / "video.mp4"
        async with client.videos.with_streaming_response.download_content(video.id) as reply:
            await reply.stream_to_file(path)
        assert b"ftyp" in path.read_bytes()[:16]
        assert (await client.videos.delete(video.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.videos.retrieve(video.id)


@pytest.mark.skipif(openai.__version__ == VERSIONS["2"], reason="this is that run")
def test_the_major_before(system: Servers) -> None:
    """These tests again, in the other environment."""

    def run(*words: str) -> tuple[int, str]:
        command = [need(OPENAI_2), *words]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=system.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return result.returncode, result.stdout + result.stderr

    assert run("-c", "import openai; print(openai.__version__)") == (0, VERSIONS["2"] + "\n")
    code, output = run("-m", "pytest", "-p", "no:cacheprovider", "-q", __file__)
    assert code == 0 and "1 skipped" in output, output
