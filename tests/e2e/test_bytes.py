"""Tensors and pixels go past the orchestrator, not through it: its connections are counted."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

from deploy.ports import free_port
from orchestrator.jobs import Status
from tests.cluster import Cluster, finished
from transfer.urls import EndpointURL

TENSOR_BYTES = 4 << 20


@dataclass
class CountingRelay:
    """Forwards TCP to a role and counts every byte, both ways."""

    target: int
    port: int = field(default_factory=free_port)
    bytes: int = 0

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def test_the_orchestrator_sees_neither_tensors_nor_pixels(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    relays = [CountingRelay(instance.url.port) for instance in cluster.roles]
    for instance, relay in zip(cluster.roles, relays, strict=True):
        instance.model = f"emulated:embeddings={TENSOR_BYTES},latents={TENSOR_BYTES}"
        instance.pool_bytes = 4 * TENSOR_BYTES
        await relay.start()
    dialled = [EndpointURL.parse(f"grpc://127.0.0.1:{relay.port}") for relay in relays]
    peers = tuple((url, instance.role.value) for url, instance in zip(dialled, cluster.roles, strict=True))
    cluster.options = cluster.options.__class__(**{**vars(cluster.options), "peers": peers})
    async with cluster:
        before = sum(relay.bytes for relay in relays)
        job = await cluster.submit("a large one", width=512, height=512, num_frames=17)
        await finished(job)
        assert job.status is Status.COMPLETED and job.file is not None
        passed = sum(relay.bytes for relay in relays) - before
        metrics = cluster.orchestrator._metrics.transfer_bytes.collect()
        moved = sum(s.value for metric in metrics for s in metric.samples if re.search("_total$", s.name))
        pixels = 512 * 512 * 3 * 17
        assert moved >= 2 * TENSOR_BYTES and pixels > TENSOR_BYTES
        assert 0 < passed < 32 * 1024, f"{passed} bytes passed the orchestrator's control streams"
    for relay in relays:
        await relay.stop()
