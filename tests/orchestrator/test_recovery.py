"""What happens when roles or the orchestrator go away, and that every slot comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.jobs import Job, Status
from orchestrator.scheduler import SchedulerOptions
from orchestrator.store import JobStore
from services.role import Role
from services.task import WorkerLimits
from tests.cluster import Cluster, finished, until

SLOW = "emulated:denoise=0.5"


async def test_a_role_that_stops_loses_no_request(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {Role.ENCODER: 1, Role.DENOISER: 2, Role.DECODER: 1})
    for instance in cluster.of(Role.DENOISER):
        instance.model = SLOW
    async with cluster:
        jobs = [await cluster.submit("p", seed=i) for i in range(6)]
        victim = cluster.of(Role.DENOISER)[0]
        await until(lambda: bool(victim.worker.tasks))
        await victim.stop()
        await finished(*jobs)
        assert [job.status for job in jobs] == [Status.COMPLETED] * 6
        await victim.start()
        await until(lambda: len(cluster.orchestrator.peers.lives()) == 4)
        await cluster.slots_back()


async def test_a_restarted_role_is_a_new_life(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        (encoder,) = cluster.of(Role.ENCODER)
        first = cluster.orchestrator.peers[encoder.url].life
        await encoder.stop()
        await until(lambda: cluster.orchestrator.peers[encoder.url].life is None)
        assert cluster.orchestrator.missing_roles() == ["encoder"]
        job = await cluster.submit("waits for the encoder")
        assert job.status is Status.QUEUED
        await encoder.start()
        await finished(job)
        second = cluster.orchestrator.peers[encoder.url].life
        assert first is not None and second is not None and first.incarnation != second.incarnation
        assert job.status is Status.COMPLETED


PATIENT = WorkerLimits(capacity=2, read_seconds=5.0, pool_seconds=5.0, hold_seconds=30.0)


def tasks_of(cluster: Cluster, role: Role) -> list[str]:
    """All tasks that instances of the role have computed."""
    return [task for instance in cluster.of(role) for task in instance.stage.made_by]


async def restarted(cluster: Cluster, jobs: list[Job]) -> list[Job]:
    """The jobs as a new orchestrator over the same store knows them."""
    await cluster.start_orchestrator()
    again = [await cluster.orchestrator.find(job.id) for job in jobs]
    return [job for job in again if job is not None]


async def test_a_restarted_orchestrator_adopts_what_still_runs(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, limits=PATIENT)
    for instance in cluster.of(Role.DENOISER):
        instance.model = SLOW
    async with cluster:
        jobs = [await cluster.submit("p", seed=i) for i in range(4)]
        await until(lambda: any(job.progress > 5 for job in jobs))
        await cluster.orchestrator.close()
        again = await restarted(cluster, jobs)
        assert [job.id for job in again] == [job.id for job in jobs]
        await finished(*again)
        assert [job.status for job in again] == [Status.COMPLETED] * 4
        for role in Role:
            assert len(tasks_of(cluster, role)) == 4, "nothing was repeated"
        await cluster.slots_back()


@pytest.mark.parametrize("finishes", [Role.DENOISER, Role.DECODER])
async def test_what_finished_while_no_orchestrator_lived_is_used(tmp_path: Path, finishes: Role) -> None:
    cluster = Cluster(tmp_path, limits=PATIENT)
    for instance in cluster.of(finishes):
        instance.model = "emulated:denoise=0.5,decode=0.5"
    async with cluster:
        job = await cluster.submit("p")
        (instance,) = cluster.of(finishes)
        await until(lambda: any(task.computing for task in instance.worker.tasks.values()))
        await cluster.orchestrator.close()
        await until(lambda: bool(instance.worker.outputs))
        (again,) = await restarted(cluster, [job])
        await finished(again)
        assert again.status is Status.COMPLETED
        assert [len(tasks_of(cluster, role)) for role in Role] == [1, 1, 1]
        await cluster.slots_back()
        path = cluster.orchestrator.content_path(again)
        assert path is not None
        await until(lambda: list(path.parent.iterdir()) == [path])  # no claim stays behind


async def test_work_of_a_deleted_job_is_stopped_when_an_orchestrator_is_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, limits=PATIENT)
    for instance in cluster.of(Role.DENOISER):
        instance.model = "emulated:denoise=60"
    async with cluster:
        job = await cluster.submit("p", num_inference_steps=200)
        (denoiser,) = cluster.of(Role.DENOISER)
        await until(lambda: bool(denoiser.worker.tasks))
        await cluster.orchestrator.close()
        store = JobStore(cluster.options.database_url)
        await store.open()
        await store.delete([job.id])
        await store.close()
        await cluster.start_orchestrator()
        await until(lambda: not denoiser.worker.tasks)
        await cluster.slots_back()


async def test_an_unfinished_job_whose_work_is_gone_runs_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, limits=PATIENT)
    for instance in cluster.of(Role.DENOISER):
        instance.model = SLOW
    async with cluster:
        jobs = [await cluster.submit("p", seed=i) for i in range(2)]
        (denoiser,) = cluster.of(Role.DENOISER)
        await until(lambda: bool(denoiser.worker.tasks))
        await cluster.orchestrator.close()
        await denoiser.stop()
        await denoiser.start()
        again = await restarted(cluster, jobs)
        await finished(*again)
        assert [job.status for job in again] == [Status.COMPLETED] * 2
        await cluster.slots_back()


async def test_a_deleted_job_stops_at_the_next_step_and_its_slots_come_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for instance in cluster.of(Role.DENOISER):
        instance.model = "emulated:denoise=60"
    async with cluster:
        (denoiser,) = cluster.of(Role.DENOISER)
        jobs = [await cluster.submit("long", num_inference_steps=200) for _ in range(5)]
        await until(lambda: any(job.progress > 2 for job in jobs))
        for job in jobs:
            assert await cluster.orchestrator.delete(job.id)
            assert await cluster.orchestrator.find(job.id) is None
        await until(lambda: not denoiser.worker.tasks)
        await cluster.slots_back()
        await until(lambda: not any(life.tasks for life in cluster.orchestrator.peers.lives()))


async def test_a_job_without_a_role_fails_with_that_reason(tmp_path: Path) -> None:
    options = SchedulerOptions(absence_seconds=0.5)
    async with Cluster(tmp_path, scheduler=options) as cluster:
        (decoder,) = cluster.of(Role.DECODER)
        await decoder.stop()
        await until(lambda: cluster.orchestrator.missing_roles() == ["decoder"])
        job = await cluster.submit("nobody decodes it")
        await finished(job)
        assert job.error is not None and job.error.code == "no_instance" and "decoder" in job.error.message
        await decoder.start()
        await cluster.slots_back()


async def test_a_role_with_another_model_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    (decoder,) = cluster.of(Role.DECODER)
    async with cluster:
        await decoder.stop()
        decoder.model = "emulated:latents=8192"
        await decoder.start()
        peer = cluster.orchestrator.peers[decoder.url]
        await until(lambda: bool(peer.refusal))
        assert "fingerprint" in peer.refusal and peer.life is None
