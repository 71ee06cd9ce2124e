"""API keys: who is served, what stays open, where keys come from; links that work without one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import stat
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import openai
import pytest
from aiohttp import test_utils

from orchestrator import main
from orchestrator.generate import add_arguments as add_generate_arguments
from orchestrator.generate import run as generate
from orchestrator.http.api_keys import ENVIRONMENT, MAX_KEYS, ApiKeys, load_api_keys
from orchestrator.http.arguments import URL_SECRET, access
from orchestrator.http.options import HttpOptions
from orchestrator.http.signing import UrlSigner
from orchestrator.jobs import Job
from tests.certificates import private_file
from tests.cluster import until
from tests.orchestrator.http.service import MemoryService

ALICE, BOB = "alices-secret-key-1", "bobs-secret-key-22"
TOKEN = "s3cret-t0ken-of-a-cluster"
SECRET = "the-secret-of-the-urls"
DATA = b"not really a video" * 100


@pytest.fixture
def options() -> HttpOptions:
    return HttpOptions(
        cluster_token=TOKEN,
        api_keys=ApiKeys({ALICE: "alice", BOB: "bob"}),
        signer=UrlSigner(SECRET, ttl=60),
    )


@pytest.fixture
def job(service: MemoryService) -> Job:
    job = service.add()
    service.complete(job, DATA)
    return job


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


ROUTES = [
    ("POST", "/v1/videos"),
    ("POST", "/v1/videos/sync"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/{id}"),
    ("DELETE", "/v1/videos/{id}"),
    ("POST", "/v1/videos/{id}/remix"),
    ("GET", "/v1/videos/{id}/content"),
    ("HEAD", "/v1/videos/{id}/content"),
    ("GET", "/v1/videos/{id}/timeline"),
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/peers"),
    ("POST", "/v1/nothing"),
    ("PUT", "/v1/videos"),
    ("POST", "/health"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_a_key(
    api: test_utils.TestClient, service: MemoryService, job: Job, method: str, path: str
) -> None:
    response = await api.request(method, path.format(id=job.id))
    assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    if method != "HEAD":
        error = (await response.json())["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert service.lookups == 0 and list(service.table) == [job.id]


async def test_every_route_needs_a_key_unless_named_here(api: test_utils.TestClient) -> None:
    assert api.app is not None
    probes = ("/health", "/livez", "/readyz", "/metrics")
    open_to_all = {("GET", path) for path in (*probes, "/openapi.json", "/docs")}
    operators = {("POST", "/v1/peers"), ("POST", "/v1/peers/drain")}
    routes = {(route.method, route.resource) for route in api.app.router.routes() if route.resource}
    for method, resource in routes:
        path = resource.canonical
        if method == "HEAD" or (method, path) in operators:
            continue
        response = await api.request(method, re.sub(r"{.*?}", "edits", path))
        assert (response.status != 401) == ((method, path) in open_to_all), (method, path)
        response.release()


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/metrics"])
async def test_probes_and_metrics_stay_open(api: test_utils.TestClient, path: str) -> None:
    for headers in ({}, bearer("not-a-key-that-is-known")):
        assert (await api.get(path, headers=headers)).status == 200
        assert (await api.head(path, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (f"Bearer {ALICE}", True),
        (f"bearer  {BOB} ", True),
        (f"Bearer {TOKEN}", True),  # operators may do what clients may
        (f"Bearer {ALICE[:-1]}", False),
        (f"Bearer {ALICE}1", False),
        (f"Bearer {ALICE} {BOB}", False),
        (f"Basic {ALICE}", False),
        (ALICE, False),
        ("Bearer alice", False),
        ("Bearer", False),
        ("Bearer é", False),
        ("", False),
    ],
)
async def test_keys(api: test_utils.TestClient, given: str, accepted: bool) -> None:
    response = await api.get("/v1/videos", headers={"Authorization": given})
    assert response.status == (200 if accepted else 401)
    text = await response.text()
    assert not any(secret in text for secret in (ALICE, BOB, TOKEN))
    if not accepted:
        assert (await response.json())["error"]["code"] == "invalid_api_key"


async def test_a_key_is_not_the_clusters_token(api: test_utils.TestClient, service: MemoryService) -> None:
    body = {"url": next(iter(service.peers))}
    refused = await api.post("/v1/peers/drain", json=body, headers=bearer(ALICE))
    assert (refused.status, (await refused.json())["error"]["code"]) == (401, "invalid_token")
    assert (await api.post("/v1/peers/drain", json=body, headers=bearer(TOKEN))).status == 200


async def test_the_log_names_the_key_of_a_job(
    api: test_utils.TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        headers = {**bearer(BOB), "X-Request-ID": "r-1"}
        response = await api.post("/v1/videos", json={"prompt": "a"}, headers=headers)
    video_id = (await response.json())["id"]
    assert f"job={video_id} request=r-1 key=bob" in caplog.messages
    assert BOB not in caplog.text


async def test_openais_client(api: test_utils.TestClient, job: Job) -> None:
    base_url = str(api.make_url("/v1"))
    async with openai.AsyncOpenAI(api_key=ALICE, base_url=base_url, max_retries=0) as client:
        assert [model.id async for model in client.models.list()]
    async with openai.AsyncOpenAI(api_key="wrong", base_url=base_url, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.models.list()
        assert refused.value.code == "invalid_api_key"


# ---- where keys come from


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    path = private_file(tmp_path / "keys", f"# ours\n\nalice {ALICE}\n  {BOB}\r\n".encode(), 0o640)
    other = "a-key-in-the-environment"
    keys = load_api_keys(path, {ENVIRONMENT: f"ci {other},\n"})
    assert keys is not None
    assert [keys.name_of(key) for key in (ALICE, BOB, other, "x")] == ["alice", "key2", "ci", None]
    assert load_api_keys(None, {}) is None
    assert not any(key in repr(vars(keys)) for key in (ALICE, BOB, other))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "there is no key"),
        ("# nothing\n", "there is no key"),
        (f"a {ALICE}\nshort", "line 2: expected KEY or NAME KEY"),
        (f"a b {ALICE}", "line 1: expected"),
        (f"a/b {ALICE}", "line 1: expected"),
        (f"{'n' * 65} {ALICE}", "line 1: expected"),
        (f"a {ALICE}\nb {ALICE}", "line 2: this key is there twice"),
        (f"a {ALICE}é", "not ASCII"),
        ("\n".join(f"key-of-many-{n:06d}" for n in range(MAX_KEYS + 1)), f"line {MAX_KEYS + 1}: more than"),
    ],
)
def test_bad_key_files(tmp_path: Path, content: str, named: str) -> None:
    path = private_file(tmp_path / "keys", content.encode())
    with pytest.raises(ValueError, match="keys: ") as error:
        load_api_keys(path, {})
    assert named in str(error.value) and ALICE not in str(error.value)


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="0644"):
        load_api_keys(private_file(tmp_path / "keys", ALICE.encode(), 0o644), {})


@pytest.mark.parametrize("value", ["", " , ", "short", f"{ALICE},{ALICE}"])
def test_a_bad_environment_does_not_open_the_api(value: str) -> None:
    with pytest.raises(ValueError, match=ENVIRONMENT):
        load_api_keys(None, {ENVIRONMENT: value})


# ---- links


async def link(api: test_utils.TestClient, job: Job) -> str:
    video = await (await api.get(f"/v1/videos/{job.id}", headers=bearer(ALICE))).json()
    url: str = video["url"]
    return url


async def test_a_link_is_all_that_a_download_needs(api: test_utils.TestClient, job: Job) -> None:
    url = await link(api, job)
    assert urlsplit(url).path == f"/v1/videos/{job.id}/content"
    response = await api.session.get(url)
    assert (response.status, await response.read()) == (200, DATA)
    response = await api.session.get(url, headers={"Range": "bytes=3-5"})
    assert (response.status, await response.read()) == (206, DATA[3:6])
    assert (await api.session.head(url)).status == 200
    # Some add the key of something else.
    assert (await api.session.get(url, headers=bearer("of-a-storage-service"))).status == 200
    response = await api.get(f"/v1/videos/{job.id}/content", headers=bearer(ALICE))
    assert await response.read() == DATA


async def test_a_link_is_good_for_nothing_else(
    api: test_utils.TestClient, service: MemoryService, job: Job
) -> None:
    url = await link(api, job)
    other = service.add()
    service.complete(other, DATA)
    expires = parse_qs(urlsplit(url).query)["expires"][0]
    for wrong in (
        url.replace(job.id, other.id),
        url + "&variant=thumbnail",
        url.replace(f"expires={expires}", f"expires={int(expires) + 1}"),
        url.replace(f"expires={expires}", f"expires=0{expires}"),
        url.replace(f"expires={expires}&", ""),
        url[:-1],
        url + "0",
        url.split("signature=", 1)[0] + "signature=%C3%A9",
    ):
        response = await api.session.get(wrong)
        assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_signature"), (
            wrong
        )
    query = urlsplit(url).query
    assert (await api.session.delete(url)).status in (401, 405)
    for path in (f"/v1/videos/{job.id}", "/v1/videos", f"/v1/videos/{job.id}/timeline"):
        assert (await api.get(f"{path}?{query}")).status == 401
    assert (await api.delete(f"/v1/videos/{job.id}?{query}")).status == 401
    assert job.id in service.table


async def test_a_link_expires(api: test_utils.TestClient, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await link(api, job)
    later = time.time() + 62
    monkeypatch.setattr("orchestrator.http.signing.time.time", lambda: later)
    response = await api.session.get(url)
    assert (response.status, (await response.json())["error"]["code"]) == (403, "url_expired")
    forged = url.replace("expires=", "expires=9")
    assert (await api.session.get(forged)).status == 401


@pytest.mark.parametrize("options", [HttpOptions()])
async def test_without_keys_links_are_plain(
    api: test_utils.TestClient, job: Job, options: HttpOptions
) -> None:
    url = await link(api, job)
    assert urlsplit(url).query == ""
    assert (await api.session.get(f"{url}?expires=1&signature=old")).status == 200


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_secret_of_links_outlives_the_process(tmp_path: Path) -> None:
    private_file(tmp_path / "keys", ALICE.encode())
    first = access(arguments("--api-key-file", str(tmp_path / "keys")), tmp_path).signer
    again = access(arguments("--api-key-file", str(tmp_path / "keys")), tmp_path).signer
    assert first is not None and again is not None
    query = {name: values[0] for name, values in parse_qs(first.query("video_1", "video")).items()}
    again.check(query, "video_1", "video")
    assert stat.S_IMODE((tmp_path / URL_SECRET).stat().st_mode) == 0o600
    # A file that several share, in another place.
    private_file(tmp_path / "secret", SECRET.encode())
    words = ("--api-key-file", str(tmp_path / "keys"), "--url-secret-file", str(tmp_path / "secret"))
    shared = access(arguments(*words), tmp_path / "nowhere").signer
    assert shared is not None
    query = {name: values[0] for name, values in parse_qs(shared.query("video_1", "video")).items()}
    UrlSigner(SECRET, 1).check(query, "video_1", "video")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--api-key-file", "{}/none"], "none"),
        (["--api-key-file", "{}/open"], "open: mode 0644"),
        (["--api-key-file", "{}/keys", "--url-ttl", "0"], "--url-ttl"),
        (["--api-key-file", "{}/keys", "--url-secret-file", "{}/none"], "none"),
        (["--url-secret-file", "{}/keys"], "--url-secret-file"),
    ],
)
def test_bad_options_stop_the_orchestrator_by_one_line(
    tmp_path: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    private_file(tmp_path / "keys", ALICE.encode())
    private_file(tmp_path / "open", ALICE.encode(), 0o644)
    words = [word.format(tmp_path) for word in words]
    assert main.run(arguments("--data-dir", str(tmp_path / "data"), *words)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and named in err


async def test_generate_with_a_key(
    api: test_utils.TestClient, service: MemoryService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    private_file(tmp_path / "key", ALICE.encode())
    words = ["a prompt", "--server", str(api.make_url("/")), "-o", str(tmp_path / "out.mp4")]
    assert await asyncio.to_thread(generate, parser.parse_args(words)) == 1
    assert "API key" in capsys.readouterr().err
    waiting = asyncio.create_task(
        asyncio.to_thread(generate, parser.parse_args([*words, "--api-key-file", str(tmp_path / "key")]))
    )
    await until(lambda: bool(service.table))
    service.complete(next(iter(service.table.values())), DATA)
    assert await waiting == 0
    assert (tmp_path / "out.mp4").read_bytes() == DATA
