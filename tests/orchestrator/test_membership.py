"""Roles join, leave and drain at run time: listed, behind a DNS name, or announcing themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from deploy.ports import free_port
from orchestrator import membership
from orchestrator.core import CoreOptions, Orchestrator
from orchestrator.http.app import create_runner
from orchestrator.http.options import HttpOptions
from orchestrator.jobs import Status
from orchestrator.main import parse_peers
from orchestrator.membership import NamedPeers
from orchestrator.peers import State
from services.announce import announce
from services.role import Role
from tests.cluster import Cluster, RoleInstance, finished, until
from transfer.urls import EndpointURL


class FakeNames:
    """Stands for the DNS of a cluster, which this machine does not have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: dict[str, set[EndpointURL] | None] = {}
        self.looks = 0
        names = self

        async def resolve(name: NamedPeers) -> set[EndpointURL]:
            names.looks += 1
            found = names.addresses[name.host]
            if found is None:
                raise OSError("no answer")
            return found

        monkeypatch.setattr(NamedPeers, "resolve", resolve)
        monkeypatch.setattr(membership, "REFRESH_SECONDS", 0.05)

    async def several_looks(self) -> None:
        seen = self.looks
        await until(lambda: self.looks > seen + 4)


def options(directory: Path, **fields: object) -> CoreOptions:
    values = {"peers": (), "database_url": f"sqlite:///{directory}/jobs.sqlite", "output_dir": directory}
    return CoreOptions(**values | fields)  # type: ignore[arg-type]


async def test_roles_behind_a_name_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = FakeNames(monkeypatch)
    first, second = (RoleInstance(Role.ENCODER, tmp_path) for _ in range(2))
    await first.start()
    names.addresses["encoders"] = {first.url}
    orchestrator = Orchestrator(options(tmp_path, named_peers=((NamedPeers("encoders", 30100), "encoder"),)))
    await orchestrator.start()
    try:
        await until(lambda: [life.url for life in orchestrator.peers.lives()] == [first.url])
        await second.start()
        names.addresses["encoders"] = {first.url, second.url}
        await until(lambda: len(orchestrator.peers.lives()) == 2)
        names.addresses["encoders"] = None
        await names.several_looks()
        assert len(orchestrator.peers) == 2
        names.addresses["encoders"] = {second.url}
        await names.several_looks()
        assert len(orchestrator.peers.lives()) == 2, "its stream lives: it may be draining"
        await first.stop()
        await until(lambda: list(orchestrator.peers) == [second.url])
    finally:
        await orchestrator.close()
        await second.stop()


async def test_a_real_name_is_looked_up() -> None:
    assert EndpointURL("127.0.0.1", 4000) in await NamedPeers("localhost", 4000).resolve()
    with pytest.raises(OSError):  # noqa: PT011 whatever the resolver says
        await NamedPeers("no-such-host.invalid", 4000).resolve()


def test_lists_may_hold_urls_and_names() -> None:
    texts = ["grpc://a:1,dns://encoders:2", "grpc://b:3; dns://others"]
    listed, named = parse_peers({"encoder": texts, "decoder": []})
    assert listed == ((EndpointURL("a", 1), "encoder"), (EndpointURL("b", 3), "encoder"))
    assert named == ((NamedPeers("encoders", 2), "encoder"), (NamedPeers("others", 30100), "encoder"))


@pytest.mark.parametrize(
    "text", ["dns://", "dns://a:99999", "dns://a:0", "dns://a/b", "dns://[::1]:3", "http://a:1"]
)
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_peers({"encoder": [text]})


async def test_an_endpoint_cannot_be_listed_twice(tmp_path: Path) -> None:
    url = EndpointURL("127.0.0.1", 1)
    orchestrator = Orchestrator(options(tmp_path, peers=((url, "encoder"), (url, "decoder"))))
    with pytest.raises(ValueError, match=r"grpc://127\.0\.0\.1:1 is in the table"):
        await orchestrator.start()
    await orchestrator.close()


async def test_roles_announce_themselves_and_are_forgotten_when_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(membership, "ANNOUNCED_SECONDS", 0.3)
    orchestrator = Orchestrator(options(tmp_path))
    await orchestrator.start()
    runner = create_runner(orchestrator, HttpOptions())
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    roles = [RoleInstance(role, tmp_path / "videos") for role in Role]
    announcing = []
    for instance in roles:
        await instance.start()
        server = instance.server
        announcing.append(
            asyncio.create_task(
                announce(
                    instance.url,
                    instance.role,
                    [f"http://127.0.0.1:{port}"],
                    None,
                    lambda s=server: s.attached,
                )
            )
        )
    try:
        await until(lambda: not orchestrator.missing_roles())
        (model,) = orchestrator.models()
        job = await orchestrator.submit(model.name, model.defaults)
        await finished(job)
        assert job.status is Status.COMPLETED
        for task in announcing:
            task.cancel()
        await roles[0].stop()
        await until(lambda: roles[0].url not in orchestrator.peers)
        assert [roles[i].url in orchestrator.peers for i in (1, 2)] == [True, True], "their streams live"
        async with aiohttp.ClientSession() as session:
            body = {"url": str(roles[1].url), "role": "decoder"}
            async with session.post(f"http://127.0.0.1:{port}/v1/peers", json=body) as reply:
                assert reply.status == 409 and "known as denoiser" in await reply.text()
    finally:
        await asyncio.gather(*announcing, return_exceptions=True)
        await runner.cleanup()
        await orchestrator.close()
        for instance in roles[1:]:
            await instance.stop()


async def test_announcing_to_nobody_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    task = asyncio.create_task(announce(EndpointURL("h", 1), Role.ENCODER, [url], None, lambda: False))
    await until(lambda: "not reachable" in caplog.text)
    assert not task.done()
    task.cancel()


async def test_a_drained_role_gets_no_new_task_and_finishes_what_it_has(tmp_path: Path) -> None:
    async with Cluster(tmp_path, {Role.ENCODER: 1, Role.DENOISER: 2, Role.DECODER: 1}) as cluster:
        drained, other = cluster.of(Role.DENOISER)
        jobs = [await cluster.submit("p", seed=seed) for seed in range(4)]
        assert cluster.orchestrator.drain(drained.url)
        assert cluster.orchestrator.peers[drained.url].state is State.DRAINING
        await until(lambda: drained.worker.draining)
        ran = set(drained.stage.made_by)
        jobs += [await cluster.submit("q", seed=seed) for seed in range(4)]
        await finished(*jobs)
        assert {job.status for job in jobs} == {Status.COMPLETED}
        assert set(drained.stage.made_by) <= ran | set(drained.worker.tasks)
        assert other.stage.made_by
        await drained.stop()
        await drained.start()
        await until(lambda: cluster.orchestrator.peers[drained.url].state is State.READY)
        await cluster.slots_back()
        assert not cluster.orchestrator.drain(EndpointURL("nobody", 1))


async def test_a_rolling_restart_of_every_role_under_load_fails_nothing(tmp_path: Path) -> None:
    async with Cluster(tmp_path, dict.fromkeys(Role, 2)) as cluster:
        stopping = asyncio.Event()
        jobs = []

        async def load() -> None:
            while not stopping.is_set():
                job = await cluster.submit("p", seed=len(jobs))
                jobs.append(job)
                await finished(job)

        clients = [asyncio.create_task(load()) for _ in range(4)]
        for instance in cluster.roles:
            before = len(jobs)
            cluster.orchestrator.drain(instance.url)
            await until(lambda i=instance: i.worker.draining and i.worker.idle.is_set())
            await instance.stop()
            await instance.start()
            peer = cluster.orchestrator.peers[instance.url]
            await until(lambda p=peer: p.state is State.READY)
            await until(lambda n=before: len(jobs) > n)
        stopping.set()
        await asyncio.gather(*clients)
        assert {job.status for job in jobs} == {Status.COMPLETED}
        assert all(attempt.outcome in ("done", "refused") for job in jobs for attempt in job.attempts), (
            "nothing was lost, so nothing was computed in vain"
        )
        await cluster.slots_back()
