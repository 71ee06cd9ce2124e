"""Control messages and tensors go to the same peer, whatever the order in which roles start."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.jobs import Job, Status
from services.role import Role
from tests.cluster import Cluster, finished, until

COUNTS = {Role.ENCODER: 2, Role.DENOISER: 3, Role.DECODER: 2}
TOTAL = sum(COUNTS.values())


async def run_jobs(order: list[int], after_orchestrator: int, directory: Path) -> None:
    cluster = Cluster(directory, COUNTS)
    started = [cluster.roles[i] for i in order]
    early, late = started[:after_orchestrator], started[after_orchestrator:]
    for instance in early:
        await instance.start()
    await cluster.start_orchestrator()
    try:
        for instance in late:
            await instance.start()
        peers = cluster.orchestrator.peers
        await until(lambda: len(peers.lives()) == TOTAL)
        assert [str(url) for url in peers] == sorted((str(url) for url in peers), key=lambda u: peers_key(u))
        jobs = [await cluster.submit(f"prompt {i}", seed=i) for i in range(12)]
        await finished(*jobs)
        for job in jobs:
            check_route(cluster, job)
        await cluster.slots_back()
    finally:
        await cluster.__aexit__()


def peers_key(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    return host, int(port)


def check_route(cluster: Cluster, job: Job) -> None:
    """The instance the orchestrator believes to have run a stage ran it, on tensors of the one before."""
    assert job.status is Status.COMPLETED, job.error
    believed = {phase.name: phase.url for phase in job.phases}
    before: str | None = None
    for stage, role in (("encode", Role.ENCODER), ("denoise", Role.DENOISER), ("decode", Role.DECODER)):
        ran = [i for i in cluster.of(role) if any(t.startswith(f"{job.id}/") for t in i.stage.made_by)]
        assert [str(instance.url) for instance in ran] == [believed[stage]]
        (made_by,) = [m for t, m in ran[0].stage.made_by.items() if t.startswith(f"{job.id}/")]
        assert made_by == before
        before = believed[stage]
    assert job.file_url == before


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(TOTAL)), after_orchestrator=st.integers(0, TOTAL))
def test_any_start_order(order: list[int], after_orchestrator: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run_jobs(order, after_orchestrator, Path(directory)))
