"""Media files on their way to a store: what is left of them here and there, whatever happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.media.files import MediaError
from services.media.remote_store import RemoteStore
from services.model.base import Cancelled, Limits
from services.model.emulated import EmulatedModel
from services.role import Role
from services.stage import MediaStage, Product
from services.task import TaskControl
from tests import s3
from tests.cluster import until
from tests.s3 import Door, S3Server
from transfer.remote_folder import RemoteFolder
from triptych_proto.control_pb2 import Generation, Run

REQUEST = Generation(prompt="p", width=32, height=32, num_frames=5, fps=8, num_inference_steps=2)


class Bench:
    """A decoder's stage, its spool folder and its bucket."""

    def __init__(self, server: S3Server, tmp_path: Path, folder: RemoteFolder, bucket: str) -> None:
        self.spool = tmp_path / "spool"
        self.bucket = bucket
        self._server = server
        self._folder = folder
        self.control = TaskControl(lambda step, total: None)
        self.stage = self.new_stage()

    def new_stage(self, seconds: float = 20.0) -> MediaStage:
        """As another process has it."""
        model = EmulatedModel(Role.DECODER, "emulated:", Limits())
        return MediaStage(model, RemoteStore(self.spool, self._folder, seconds))

    def run(self, stage: MediaStage | None = None) -> Product:
        import torch

        run = Run(task_id="job/decode/e-1", generation=REQUEST)
        return (stage or self.stage).run(run, {"latents": torch.zeros(16)}, self.control)

    def here(self) -> set[str]:
        return {path.name for path in self.spool.iterdir()}

    def there(self) -> set[str]:
        return self._server.names(self.bucket)


@pytest.fixture
def bench(s3_server: S3Server, tmp_path: Path) -> Bench:
    bucket = s3_server.bucket()
    return Bench(s3_server, tmp_path, s3.folder(s3_server, bucket), bucket)


def behind(door: Door, server: S3Server, tmp_path: Path) -> Bench:
    bucket = server.bucket()
    return Bench(server, tmp_path, s3.folder(door, bucket), bucket)


SPOOLED = {"job-decode-e-1.mp4", "job-decode-e-1.mp4.claim"}
STORED = {"videos/job-decode-e-1.mp4"}


def test_an_accepted_file_is_in_the_store_alone(bench: Bench, s3_server: S3Server) -> None:
    product = bench.run()
    assert not product.delivered and bench.here() == SPOOLED and bench.there() == set()
    content = (bench.spool / "job-decode-e-1.mp4").read_bytes()
    bench.stage.deliver(product, bench.control)
    assert product.delivered and product.file is not None
    assert product.file.store == f"s3://{bench.bucket}/videos"
    assert bench.here() == SPOOLED, "until the orchestrator has recorded it"
    for _ in range(2):
        bench.stage.accept(product)
    assert bench.here() == set() and bench.there() == STORED
    assert s3_server.get(bench.bucket, "videos/job-decode-e-1.mp4") == content


@pytest.mark.parametrize("delivered", [False, True])
def test_a_discarded_file_is_nowhere(bench: Bench, delivered: bool) -> None:
    product = bench.run()
    if delivered:
        bench.stage.deliver(product, bench.control)
    for _ in range(2):
        bench.stage.discard(product)
    assert bench.here() == set() and bench.there() == set()


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_result_outlives_its_process(bench: Bench, delivered: bool, wanted: bool) -> None:
    product = bench.run()
    if delivered:
        bench.stage.deliver(product, bench.control)
    assert product.claim is not None
    product.claim.leave()
    stage = bench.new_stage()
    (recovered,) = stage.recover()
    assert recovered.task_id == "job/decode/e-1" and not recovered.delivered
    stage.deliver(recovered, bench.control)
    assert recovered.file is not None and recovered.file.store == f"s3://{bench.bucket}/videos"
    (stage.accept if wanted else stage.discard)(recovered)
    assert bench.here() == set()
    assert bench.there() == (STORED if wanted else set())


def test_a_store_that_refuses_is_not_asked_again(bench: Bench, s3_server: S3Server) -> None:
    s3_server.deny(bench.bucket, "s3:PutObject")
    product = bench.run()
    with pytest.raises(MediaError, match=rf"^s3://{bench.bucket}/videos/job-decode-e-1.mp4: Forbidden"):
        bench.stage.deliver(product, bench.control)
    bench.stage.discard(product)
    assert bench.here() == set()
    s3_server.deny(bench.bucket)


async def test_a_store_that_comes_back_gets_the_file(s3_server: S3Server, tmp_path: Path) -> None:
    async with Door(s3_server) as door:
        bench = behind(door, s3_server, tmp_path)
        product = await asyncio.to_thread(bench.run)
        door.away = True
        delivering = asyncio.create_task(asyncio.to_thread(bench.stage.deliver, product, bench.control))
        await until(lambda: door.refused > 0)
        door.away = False
        await delivering
        bench.stage.accept(product)
        assert bench.there() == STORED


@pytest.mark.parametrize("state", ["away", "full"])
async def test_a_store_that_does_not_come_back(s3_server: S3Server, tmp_path: Path, state: str) -> None:
    """Nothing piles up here."""
    async with Door(s3_server) as door:
        bench = behind(door, s3_server, tmp_path)
        setattr(door, state, True)
        stage = bench.new_stage(seconds=0.1)
        product = await asyncio.to_thread(bench.run, stage)
        with pytest.raises(MediaError, match=rf"^s3://{bench.bucket}/videos/job-decode-e-1.mp4: "):
            await asyncio.to_thread(stage.deliver, product, bench.control)
        await asyncio.to_thread(stage.discard, product)
        assert bench.here() == set() and bench.there() == set()


async def test_a_cancelled_task_does_not_wait_for_the_store(s3_server: S3Server, tmp_path: Path) -> None:
    async with Door(s3_server) as door:
        bench = behind(door, s3_server, tmp_path)
        product = await asyncio.to_thread(bench.run)
        door.away = True
        stage = bench.new_stage(seconds=1000.0)
        delivering = asyncio.create_task(asyncio.to_thread(stage.deliver, product, bench.control))
        await until(lambda: door.refused > 0)
        bench.control.cancel()
        with pytest.raises(Cancelled):
            await delivering
        door.away = False
        await asyncio.to_thread(stage.discard, product)
        assert bench.here() == set()
