"""Server-sent events: what a client is told of a job, when streams end, and what they may cost."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils, web

from orchestrator.http.app import create_app, create_runner
from orchestrator.http.events import END, STREAMS
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Job, Pace, Status
from orchestrator.watchers import Watchers
from services.role import Role
from tests.cluster import Cluster, until
from tests.orchestrator.http.conformance import Conformance, event_problems
from tests.orchestrator.http.service import MemoryService

Event = dict[str, Any]


async def read(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The events of a stream as a browser takes them apart; comments are events of kind ``comment``."""
    event: Event = {}
    async for line in response.content:
        text = line.decode().removesuffix("\n")
        name, _, value = text.partition(": ")
        if text.startswith(":"):
            yield {"event": "comment"}
        elif text:
            event[name] = json.loads(value) if name == "data" else value
        elif "data" in event:
            assert event_problems(event["event"], event["data"]) == []
            yield event
            event = {}


async def open_stream(api: test_utils.TestClient, job: Job, **headers: str) -> aiohttp.ClientResponse:
    response = await api.get(f"/v1/videos/{job.id}/events", headers=headers)
    assert response.status == 200, await response.text()
    return response


def streams(api: test_utils.TestClient) -> int:
    assert api.app is not None
    return len(api.app[STREAMS])


def step(service: MemoryService, job: Job, number: int, steps: int = 100) -> None:
    job.status, job.progress = Status.IN_PROGRESS, number * 100 // steps
    job.pace = Pace("denoise", number, steps, 2.0, (steps - number) / 2)
    service.watchers.notify(job.id)


async def test_a_job_from_queue_to_end(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    response = await open_stream(api, job)
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    stream = read(response)
    first = await anext(stream)
    assert (first["id"], first["event"], first["retry"]) == ("1", "progress", "2000")
    assert (first["data"]["status"], first["data"]["step"]) == ("queued", None)
    step(service, job, 25)
    event = await anext(stream)
    assert event["id"] == "2"
    assert event["data"] == {
        "id": job.id,
        "object": "video.progress",
        "status": "in_progress",
        "progress": 25,
        "stage": "denoise",
        "step": 25,
        "total_steps": 100,
        "steps_per_second": 2.0,
        "seconds_left": 37.5,
    }
    service.complete(job, b"data")
    event = await anext(stream)
    assert (event["event"], event["id"]) == ("completed", END)
    assert event["data"] == await (await api.get(f"/v1/videos/{job.id}")).json()
    assert [event async for event in stream] == []
    assert streams(api) == 0 and len(service.watchers) == 0


async def test_a_failed_job_and_one_that_is_deleted(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    failing, deleted = service.add(), service.add()
    first, second = read(await open_stream(api, failing)), read(await open_stream(api, deleted))
    await anext(first), await anext(second)
    service.fail(failing)
    (event,) = [event async for event in first]
    assert (event["event"], event["data"]["error"]["code"]) == ("failed", "stage_failed")
    await api.delete(f"/v1/videos/{deleted.id}")
    (event,) = [event async for event in second]
    assert (event["event"], event["data"]["id"]) == ("deleted", deleted.id)


async def test_a_job_that_is_over(api: test_utils.TestClient, service: MemoryService) -> None:
    job = service.add()
    service.complete(job)
    for last in ("", "7", "x" * 300):  # whatever a client says it has had
        (event,) = [event async for event in read(await open_stream(api, job, **{"Last-Event-ID": last}))]
        assert event["event"] == "completed"
    # A browser that has had the last event asks again all the same, until it is told not to.
    response = await api.get(f"/v1/videos/{job.id}/events", headers={"Last-Event-ID": END})
    assert (response.status, await response.read()) == (204, b"")


async def test_unknown_jobs_and_head(api: test_utils.TestClient, service: MemoryService) -> None:
    assert (await api.get("/v1/videos/none/events")).status == 404
    response = await api.head(f"/v1/videos/{service.add().id}/events")
    assert (response.status, response.content_type) == (200, "text/event-stream")
    assert streams(api) == 0


async def test_changes_that_come_at_once_are_one_event(
    api: test_utils.TestClient, service: MemoryService
) -> None:
    job = service.add()
    stream = read(await open_stream(api, job))
    await anext(stream)
    for number in range(50):
        step(service, job, number)
    service.watchers.notify(job.id)
    assert (await anext(stream))["data"]["step"] == 49
    service.watchers.notify(job.id)  # nothing has changed: no event
    service.complete(job)
    event = await anext(stream)
    assert event["event"] == "completed"


@pytest.mark.parametrize("options", [HttpOptions(heartbeat_seconds=0.05)])
async def test_heartbeats(api: test_utils.TestClient, service: MemoryService, options: HttpOptions) -> None:
    job = service.add()
    stream = read(await open_stream(api, job))
    assert (await anext(stream))["event"] == "progress"
    assert [(await anext(stream))["event"] for _ in range(3)] == ["comment"] * 3
    service.complete(job)
    rest = [event["event"] async for event in stream]
    assert rest[-1] == "completed"


@pytest.mark.parametrize("options", [HttpOptions(max_streams=2)])
async def test_too_many_streams(
    api: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    job = service.add()
    open_ones = [await open_stream(api, job) for _ in range(2)]
    refused = await api.get(f"/v1/videos/{job.id}/events")
    assert (refused.status, (await refused.json())["error"]["code"]) == (429, "too_many_streams")
    assert int(refused.headers["Retry-After"]) > 0
    open_ones[0].close()  # the client leaves: its place is free again, without any event
    await until(lambda: streams(api) == 1)
    assert len(service.watchers) == 1
    (await open_stream(api, job)).close()


@pytest.mark.parametrize("options", [HttpOptions(send_timeout=0.2)])
async def test_a_client_that_does_not_read_is_cut_off(
    api: test_utils.TestClient, service: MemoryService, options: HttpOptions
) -> None:
    job = service.add()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, (str(api.host), int(api.port or 0)))
        await loop.sock_sendall(deaf, f"GET /v1/videos/{job.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: streams(api) == 1)
        for number in range(10**6):
            step(service, job, number, 10**6)
            await asyncio.sleep(0)
            if streams(api) == 0:
                break
        await until(lambda: streams(api) == 0)
    assert len(service.watchers) == 0


async def test_a_server_that_stops_ends_its_streams(service: MemoryService, conformance: Conformance) -> None:
    runner = create_runner(service, HttpOptions())
    conformance.watch(runner.app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    job = service.add()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{host}:{port}/v1/videos/{job.id}/events") as response,
    ):
        stream = read(response)
        await anext(stream)
        await asyncio.wait_for(runner.cleanup(), 4.0)  # less than it gives to requests under way
        assert [event async for event in stream] == []


async def test_watchers_are_told_of_their_job_only() -> None:
    watchers = Watchers()
    watchers.notify("nobody")
    with watchers.watch("a") as first, watchers.watch("a") as second, watchers.watch("b") as other:
        watchers.notify("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
        assert len(watchers) == 3
    assert len(watchers) == 0


async def test_with_roles(tmp_path: Path, conformance: Conformance) -> None:
    cluster = Cluster(tmp_path)
    (denoiser,) = cluster.of(Role.DENOISER)
    denoiser.model = "emulated:denoise=1"  # of a stage that is over soon no step is told
    async with cluster:
        app = conformance.watch(create_app(cluster.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            job = await cluster.submit("a prompt", num_inference_steps=8)
            events = [event async for event in read(await open_stream(api, job))]
            percents = [event["data"]["progress"] for event in events]
            assert events[-1]["event"] == "completed" and percents[-1] == 100
            assert percents == sorted(percents)
            assert any(event["data"].get("step") for event in events)


async def test_a_job_of_another_orchestrator(
    tmp_path: Path, postgres_url: str, conformance: Conformance
) -> None:
    async with (
        Cluster(tmp_path / "a", database_url=postgres_url, name="a") as one,
        Cluster(tmp_path / "b", database_url=postgres_url, name="b") as other,
    ):
        app = conformance.watch(create_app(other.orchestrator, HttpOptions()))
        async with test_utils.TestClient(test_utils.TestServer(app)) as api:
            job = await one.submit("a prompt")
            events = [event async for event in read(await open_stream(api, job))]
            assert events[-1]["event"] == "completed" and events[-1]["data"]["id"] == job.id
