"""Roles and an orchestrator inside the test process: real gRPC streams, real slots, emulated model."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.ports import free_port
from orchestrator.core import CoreOptions, Orchestrator
from orchestrator.jobs import Job
from orchestrator.scheduler import SchedulerOptions
from services.credentials import Credentials
from services.media.remote_store import RemoteStore
from services.media.store import LocalStore, Store
from services.model.base import Control, Limits, Value
from services.model.emulated import EmulatedModel
from services.role import Role
from services.server import RoleServer
from services.stage import MediaStage, Product, Stage, TensorStage
from services.task import WorkerLimits
from services.worker import Worker
from transfer.endpoint import TransferEndpoint
from transfer.remote_folder import RemoteFolder
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Generation, Run

LIMITS = WorkerLimits(capacity=2, read_seconds=5.0, pool_seconds=5.0, hold_seconds=0.5)
POOL_BYTES = 1 << 20


class RecordingStage:
    """Notes every task that ran here and who made its inputs; its own outputs carry its URL."""

    def __init__(self, inner: Stage, url: EndpointURL) -> None:
        self.inner = inner
        self.url = url
        self.made_by: dict[str, str | None] = {}  # task id -> URL of the role whose tensors it was given

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        values = dict(inputs)
        source = values.pop("made_by", None)
        assert source is None or isinstance(source, str)
        self.made_by[run.task_id] = source
        product = self.inner.run(run, values, control)
        if product.values is not None:
            product.values["made_by"] = str(self.url)
        return product

    def deliver(self, product: Product, control: Control) -> None:
        self.inner.deliver(product, control)

    def discard(self, product: Product) -> None:
        self.inner.discard(product)

    def accept(self, product: Product) -> None:
        self.inner.accept(product)

    def recover(self) -> list[Product]:
        return self.inner.recover()


class RoleInstance:
    """One role: server, worker and data plane, as ``services.main`` puts them together."""

    def __init__(
        self, role: Role, directory: Path, *, model: str = "emulated:", limits: WorkerLimits = LIMITS
    ) -> None:
        self.role = role
        self.url = EndpointURL.parse(f"grpc://127.0.0.1:{free_port()}")
        self.directory = directory
        self.engines: tuple[str, ...] = ("shm", "zmq")
        self.pool_bytes = POOL_BYTES
        self.model = model
        self.hand_over = False
        self.remote: RemoteFolder | None = None  # a decoder's files go there, by way of `spool`
        self.spool = directory.parent / "spool"
        self.upload_seconds = 5.0
        self.credentials = Credentials()
        self._limits = limits

    async def start(self) -> None:
        """A new life at the same URL."""
        incarnation = secrets.token_hex(8)
        model = EmulatedModel(self.role, self.model, Limits())
        self.server = RoleServer(self.role, incarnation, self.credentials)
        await self.server.listen(f"127.0.0.1:{self.url.port}")
        self.endpoint = await TransferEndpoint.start(
            self.url,
            incarnation,
            outbox_bytes=self.pool_bytes,
            inbox_bytes=self.pool_bytes,
            engines=self.engines,
        )
        inner: Stage = TensorStage(model)
        if self.role is Role.DECODER:
            inner = MediaStage(model, self._store())
        self.stage = RecordingStage(inner, self.url)
        max_images = model.facts.max_images if self.role is Role.ENCODER else 0
        self.worker = Worker(self.stage, self.endpoint, replace(self._limits, max_images=max_images))
        directory = self.directory if self.role is Role.DECODER else None
        await self.worker.recover()
        await self.server.open_for_work(model, self.worker, self.endpoint, directory)

    def _store(self) -> Store:
        if self.remote is not None:
            return RemoteStore(self.spool, self.remote, self.upload_seconds)
        return LocalStore(self.directory, self.hand_over)

    async def stop(self) -> None:
        await self.server.stop()
        await self.worker.close()
        await self.endpoint.close()

    @property
    def slots_in_use(self) -> int:
        return sum(pool.stats().slots_in_use for pool in self.endpoint.pools)


class Cluster:
    """Roles of each kind and one orchestrator over them."""

    def __init__(
        self,
        directory: Path,
        counts: Mapping[Role, int] | None = None,
        limits: WorkerLimits = LIMITS,
        **options: object,
    ) -> None:
        counts = counts or dict.fromkeys(Role, 1)
        videos = directory / "videos"
        self.roles = [RoleInstance(role, videos, limits=limits) for role in Role for _ in range(counts[role])]
        self.options = replace(
            CoreOptions(
                peers=tuple((instance.url, instance.role.value) for instance in self.roles),
                database_url=f"sqlite:///{directory / 'jobs.sqlite'}",
                output_dir=videos,
                scheduler=SchedulerOptions(job_seconds=60.0, absence_seconds=30.0),
            ),
            **options,  # type: ignore[arg-type]
        )

    def of(self, role: Role) -> list[RoleInstance]:
        return [instance for instance in self.roles if instance.role is role]

    async def __aenter__(self) -> Cluster:
        for instance in self.roles:
            await instance.start()
        await self.start_orchestrator()
        await until(lambda: len(self.orchestrator.peers.lives()) == len(self.roles))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.orchestrator.close()
        for instance in self.roles:
            await instance.stop()

    async def start_orchestrator(self) -> None:
        self.orchestrator = Orchestrator(self.options)
        await self.orchestrator.start()

    async def submit(self, prompt: str, images: Sequence[bytes] = (), **fields: object) -> Job:
        (model,) = self.orchestrator.models()
        generation = Generation()
        generation.CopyFrom(model.defaults)
        generation.MergeFrom(Generation(prompt=prompt, **fields))  # type: ignore[arg-type]
        return await self.orchestrator.submit(model.name, generation, images=images)

    async def slots_back(self) -> None:
        """Waits until every slot of every role has come back, and no role holds any result."""
        await until(lambda: not any(role.slots_in_use or role.worker.outputs for role in self.roles))


async def finished(*jobs: Job, seconds: float = 30.0) -> None:
    await until(lambda: all(job.status.final for job in jobs), seconds)


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Returns when ``condition`` holds; fails when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)
