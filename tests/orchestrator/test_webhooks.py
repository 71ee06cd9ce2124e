"""Webhooks: signed, for allowed hosts only, tried again, given up in one line, not lost by a restart."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import test_utils, web

from orchestrator.http.app import create_app
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Status
from orchestrator.store import JobStore
from orchestrator.targets import TargetResolver, Targets
from orchestrator.webhooks import WebhookOptions, Webhooks, load_webhook_secret
from tests.certificates import private_file
from tests.cluster import Cluster, finished, until
from tests.orchestrator.http.conformance import Conformance
from triptych_proto.control_pb2 import Generation

SECRET = b"0123456789abcdef0123456789abcdef"
SPELLED = f"whsec_{base64.b64encode(SECRET).decode()}"


class Receiver:
    """A client's server; answers with the next of ``statuses``, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        app = web.Application()
        app.router.add_post("/hook", self._hook)
        self.server = test_utils.TestServer(app, host="127.0.0.1")

    async def _hook(self, request: web.Request) -> web.Response:
        self.received.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/hook"} if status == 302 else {})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/hook"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.server.start_server()
    yield receiver
    await receiver.server.close()


def options_for(receiver: Receiver, **values: Any) -> WebhookOptions:
    targets = Targets([f"127.0.0.1:{receiver.server.port}"], "--webhook-allow")
    return WebhookOptions(targets, SECRET, **{"retry_seconds": (0.01,) * 3, **values})


def ended(url: str, status: Status = Status.COMPLETED) -> Job:
    job = Job.new("m", Generation(prompt="p"))
    job.status, job.completed_at, job.webhook_url = status, 12.5, url
    return job


class Sender:
    """Webhooks whose settled jobs are kept."""

    def __init__(self, options: WebhookOptions) -> None:
        self.settled: list[Job] = []
        self.store_answers = asyncio.Event()
        self.store_answers.set()
        self.webhooks = Webhooks(options, self._settle)

    async def _settle(self, job: Job) -> None:
        await self.store_answers.wait()
        self.settled.append(job)

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.webhooks.close()
        assert not self.webhooks._tasks


@pytest.mark.parametrize(
    ("status", "kind"), [(Status.COMPLETED, "video.completed"), (Status.FAILED, "video.failed")]
)
async def test_openais_client_takes_it(receiver: Receiver, status: Status, kind: str) -> None:
    job = ended(receiver.url, status)
    async with Sender(options_for(receiver)) as sender:
        sender.webhooks.send(job)
        await until(lambda: sender.settled == [job])
    assert job.webhook_url is None
    ((headers, body),) = receiver.received
    client = openai.OpenAI(api_key="none", webhook_secret=SPELLED)
    event = client.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id, event.created_at) == (kind, job.id, 12)  # type: ignore[union-attr]
    assert event.id == headers["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers)


async def test_tried_again_under_the_same_id(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [500, 302, 404]
    job = ended(receiver.url)
    async with Sender(options_for(receiver)) as sender:
        sender.webhooks.send(job)
        await until(lambda: bool(sender.settled))
    assert len(receiver.received) == 4  # the redirect is not followed
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert caplog.records == []


async def test_given_up_in_one_line(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [503] * 10
    job = ended(receiver.url + "?secret=1")
    async with Sender(options_for(receiver)) as sender:
        sender.webhooks.send(job)
        await until(lambda: sender.settled == [job])
    assert len(receiver.received) == 4
    (line,) = caplog.messages
    assert line == f"job={job.id} webhook is given up after 4 attempts: 127.0.0.1 answered 503"


async def test_nobody_listens(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    job, options = ended(receiver.url), options_for(receiver)
    await receiver.server.close()
    async with Sender(options) as sender:
        sender.webhooks.send(job)
        await until(lambda: sender.settled == [job])
    assert len(caplog.messages) == 1 and "4 attempts" in caplog.messages[0]


async def test_a_receiver_that_is_no_web_server(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nbad header\x1b[2J line\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = WebhookOptions(Targets([f"127.0.0.1:{port}"], "--webhook-allow"), SECRET, retry_seconds=())
    async with Sender(options) as sender:
        sender.webhooks.send(ended(f"http://127.0.0.1:{port}/"))
        await until(lambda: bool(sender.settled))
    server.close()
    (line,) = caplog.messages
    assert "given up after 1 attempts" in line and line.isprintable()


async def test_too_many_at_once(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [500]
    async with Sender(options_for(receiver, max_pending=1, retry_seconds=(60.0,))) as sender:
        waiting, dropped = ended(receiver.url), ended(receiver.url)
        sender.webhooks.send(waiting)
        sender.webhooks.send(dropped)
        await until(lambda: sender.settled == [dropped])
        assert "1 others are waiting already" in caplog.text
        await until(lambda: len(receiver.received) == 1)
    assert waiting.webhook_url is not None  # it is for the next life to try again


async def test_the_end_waits_until_it_is_recorded(receiver: Receiver) -> None:
    job = ended(receiver.url)
    sender = Sender(options_for(receiver))
    sender.store_answers.clear()
    sender.webhooks.send(job)
    await until(lambda: job.webhook_url is None)
    closing = asyncio.create_task(sender.webhooks.close())
    await asyncio.sleep(0)
    sender.store_answers.set()
    await closing
    assert sender.settled == [job]


async def test_a_deleted_job_is_not_told(receiver: Receiver) -> None:
    receiver.statuses = [500] * 9
    job = ended(receiver.url)
    async with Sender(options_for(receiver, retry_seconds=(0.05,) * 9)) as sender:
        sender.webhooks.send(job)
        await until(lambda: len(receiver.received) == 1)
        job.webhook_url = None
        await until(lambda: not sender.webhooks._tasks)
    assert len(receiver.received) == 1 and not sender.settled


# ---- where they may go

ALLOWED = ["hooks.example", "other.example:8443", "[::1]:9000", "inside.example:80", "10.0.0.0/8"]


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example/a?b=c",
        "http://hooks.example:80/",
        "https://HOOKS.example",
        "https://other.example:8443/x",
        "http://[::1]:9000/",
    ],
)
def test_allowed(url: str) -> None:
    Targets(ALLOWED, "--webhook-allow").check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https://hooks.example:444/",
        "https://other.example/",
        "https://hooks.example.evil/",
        "https://hooks.example@evil.example/",
        "https://user:password@hooks.example/",
        "https://evil.example\\@hooks.example/",
        "https://evil.example#@hooks.example/",
        "https://hooks.example./",
        "https://10.0.0.1/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::1",
        "https://hooks.example:x/",
        "https://hooks.example/ a",
        "https://hooks.example/\r\nX: y",
        "https://hooks.example/é",
        "https://hooks.example/" + "a" * 2048,
    ],
)
def test_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected|not among|not a URL"):
        Targets(ALLOWED, "--webhook-allow").check(url)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.1.2.3", True),  # named
        ("::ffff:10.1.2.3", True),
        ("::1", True),
        ("127.0.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses(address: str, allowed: bool) -> None:
    assert Targets(ALLOWED, "--webhook-allow").allows(ipaddress.ip_address(address)) == allowed


async def test_a_name_that_leads_inside() -> None:
    resolver = TargetResolver(Targets(["localhost"], "--webhook-allow"))
    with pytest.raises(OSError, match="localhost has no public address"):
        await resolver.resolve("localhost", 80, socket.AF_INET)
    await resolver.close()
    resolver = TargetResolver(Targets(["localhost", "127.0.0.0/8"], "--webhook-allow"))
    (found,) = await resolver.resolve("localhost", 80, socket.AF_INET)
    assert found["host"] == "127.0.0.1"
    await resolver.close()


async def test_such_a_name_is_not_called(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    port = receiver.server.port
    options = WebhookOptions(Targets([f"localhost:{port}"], "--webhook-allow"), SECRET, retry_seconds=())
    async with Sender(options) as sender:
        sender.webhooks.send(ended(f"http://localhost:{port}/hook"))
        await until(lambda: bool(sender.settled))
    assert receiver.received == []
    assert "localhost has no public address" in caplog.text


@pytest.mark.parametrize("entry", ["", "https://x", "a b", "x:y", "x:1:2", "10.0.0.1/8", "10.0.0.0/99", "*"])
def test_bad_entries(entry: str) -> None:
    with pytest.raises(ValueError, match="--webhook-allow"):
        Targets([entry], "--webhook-allow")


def test_the_secret(tmp_path: Path) -> None:
    made = load_webhook_secret(None, tmp_path / "secret")
    assert load_webhook_secret(None, tmp_path / "secret") == made and len(made) == 32
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert load_webhook_secret(private_file(tmp_path / "own", SPELLED.encode()), tmp_path / "x") == SECRET
    for number, wrong in enumerate((b"", b"whsec_", SPELLED[6:].encode(), b"whsec_" + b"!" * 40)):
        with pytest.raises(ValueError, match=f"bad{number}: expected whsec_"):
            load_webhook_secret(private_file(tmp_path / f"bad{number}", wrong), tmp_path / "x")


# ---- with an orchestrator


async def test_from_the_request_to_the_receiver(
    tmp_path: Path, receiver: Receiver, conformance: Conformance
) -> None:
    webhooks = options_for(receiver)
    async with Cluster(tmp_path, webhooks=webhooks) as cluster:
        options = HttpOptions(webhook_targets=webhooks.targets)
        app = conformance.watch(create_app(cluster.orchestrator, options))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            response = await api.post("/v1/videos", data={"prompt": "a", "webhook_url": receiver.url})
            assert response.status == 200, await response.text()
            video = await response.json()
            assert receiver.url not in json.dumps(video)  # every client may see the job
            await until(lambda: len(receiver.received) == 1)
            assert json.loads(receiver.received[0][1])["data"]["id"] == video["id"]
            refused = await api.post("/v1/videos", json={"prompt": "a", "webhook_url": "http://10.0.0.1/"})
            assert (refused.status, (await refused.json())["error"]["param"]) == (400, "webhook_url")
        off = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(off)) as api:
            refused = await api.post("/v1/videos", json={"prompt": "a", "webhook_url": receiver.url})
            assert (await refused.json())["error"]["code"] == "unsupported_field"
            assert (await api.post("/v1/videos", json={"prompt": "a", "webhook_url": None})).status == 200


async def test_a_restart_loses_none(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [500]
    webhooks = options_for(receiver, retry_seconds=(3600.0,))
    async with Cluster(tmp_path, webhooks=webhooks) as cluster:
        (model,) = cluster.orchestrator.models()
        job = await cluster.orchestrator.submit(model.name, model.defaults, webhook_url=receiver.url)
        await finished(job)
        await until(lambda: len(receiver.received) == 1)
        await cluster.orchestrator.close()
        await cluster.start_orchestrator()
        await until(lambda: len(receiver.received) == 2)
        assert receiver.received[0][1] == receiver.received[1][1]
        again = await cluster.orchestrator.find(job.id)
        assert again is not None
        await until(lambda: again.webhook_url is None)
        await cluster.orchestrator.close()
        store = JobStore(cluster.options.database_url)
        await store.open()
        (kept,) = await store.load()
        await store.close()
        assert kept.webhook_url is None  # told once: the next life does not tell it again
        await cluster.start_orchestrator()
