"""Orchestrators that lie: whatever a role is told, it lives on, does honest work, and all slots come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.jobs import Status
from services import session
from services.role import Role
from services.task import WorkerLimits
from tests.cluster import Cluster, RoleInstance, finished, until
from tests.mutation import mutated
from triptych_proto import control_pb2 as pb
from triptych_proto.control_pb2_grpc import RoleStub

LIMITS = WorkerLimits(capacity=2, read_seconds=0.5, pool_seconds=0.5, hold_seconds=0.05)
ATTACH = "/triptych.v1.Role/Attach"
GENERATION = pb.Generation(prompt="p", width=64, height=64, num_frames=5, fps=8, num_inference_steps=2)
PLACEHOLDER = "@input"  # in the place of an input's task id: the real one, with all it says

Frame = pb.Commands | bytes


def run(task_id: str = "t/encode/e-1", inputs: bool = False, **fields: object) -> pb.Command:
    generation = pb.Generation()
    generation.CopyFrom(GENERATION)
    generation.MergeFrom(pb.Generation(**fields))  # type: ignore[arg-type]
    sources = [pb.Input(task_id=PLACEHOLDER)] if inputs else []
    return pb.Command(run=pb.Run(task_id=task_id, job_id="t", generation=generation, inputs=sources))


IDS = ["t/encode/e-1", "unknown", "", "x" * 1000]
COMMANDS = [
    run(),
    run(inputs=True),
    run("../../x/decode/1", inputs=True),
    pb.Command(cancel=pb.Cancel(task_id=IDS[0])),
    pb.Command(release=pb.Release(task_ids=IDS)),
    pb.Command(adopt=pb.Adopt(task_ids=IDS)),
    pb.Command(accept=pb.Accept(task_ids=IDS)),
    pb.Command(),
]
TEXTS = st.sampled_from([PLACEHOLDER, *IDS]) | st.text(st.characters(codec="utf-8"), max_size=8)
FRAMES: st.SearchStrategy[Frame] = st.builds(
    lambda commands: pb.Commands(commands=commands),
    st.lists(mutated(st.sampled_from(COMMANDS), TEXTS, most=2), max_size=4),
) | st.binary(max_size=20)


class Scene:
    """A cluster with its honest orchestrator, and streams of another one, over all examples."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.cluster = Cluster(directory, limits=LIMITS)

    async def open(self) -> None:
        await self.cluster.__aenter__()
        (encoder,) = self.cluster.of(Role.ENCODER)
        self.held = await encoder.endpoint.put(
            encoder.stage.run(pb.Run(task_id="made", generation=GENERATION), {}, Quiet()).values, 1.0
        )
        location = self.held.location
        self.input = pb.Input(
            task_id="made",
            url=str(encoder.url),
            incarnation=encoder.server._incarnation,
            endpoints=[
                pb.TransferEndpoint(engine=a.engine, address=a.address, scope=a.scope)
                for a in encoder.endpoint.addresses
            ],
            slot=pb.Slot(
                arena=location.arena,
                offset=location.offset,
                length=location.length,
                generation=location.generation,
                checksum=location.checksum,
                manifest=location.manifest,
            ),
        )

    async def close(self) -> None:
        self.held.release()
        await self.cluster.slots_back()
        await self.cluster.__aexit__()

    async def play(self, frames: list[Frame]) -> None:
        """Every role is told ``frames`` on a stream of their own, while honest work is done."""
        job = await self.cluster.submit("honest")
        await asyncio.gather(*(self._tell(instance, frames) for instance in self.cluster.roles))
        await finished(job)
        assert job.status is Status.COMPLETED, job.error
        await until(lambda: sum(instance.slots_in_use for instance in self.cluster.roles) == 1)
        await until(lambda: not any(instance.worker.tasks for instance in self.cluster.roles))
        lives = {life.url for life in self.cluster.orchestrator.peers.lives()}
        assert lives == {instance.url for instance in self.cluster.roles}, "no stream of others was disturbed"

    async def _tell(self, instance: RoleInstance, frames: list[Frame]) -> None:
        async with grpc.aio.insecure_channel(instance.url.target) as channel:
            stream = channel.stream_stream(ATTACH)()  # bytes in, bytes out
            first = pb.Events.FromString(await stream.read())
            assert first.events[0].HasField("hello")
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for told in frames:
                    await stream.write(told if isinstance(told, bytes) else self._filled_in(told))
                await stream.done_writing()
                while (answer := await stream.read()) is not grpc.aio.EOF:
                    pb.Events.FromString(answer)

    def _filled_in(self, told: pb.Commands) -> bytes:
        filled = pb.Commands()
        filled.CopyFrom(told)
        for command in filled.commands:
            for source in command.run.inputs:
                if source.task_id == PLACEHOLDER:
                    overrides = pb.Input()
                    overrides.CopyFrom(source)
                    overrides.ClearField("task_id")
                    source.CopyFrom(self.input)
                    source.MergeFrom(overrides)
        return filled.SerializeToString()


class Quiet:
    """Control of a run that nobody watches."""

    def progress(self, step: int, total: int) -> None: ...

    def raise_if_cancelled(self) -> None: ...


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    asyncio.set_event_loop(scene.loop)
    scene.loop.run_until_complete(scene.open())
    yield scene
    scene.loop.run_until_complete(scene.close())
    asyncio.set_event_loop(None)
    scene.loop.close()


def said(*commands: pb.Command) -> list[Frame]:
    return [pb.Commands(commands=commands)]


HOSTILE_SLOT = pb.Slot(arena="outbox", offset=2**64 - 1, length=2**64 - 1, generation=2**64 - 1)
HOSTILE = pb.Run(
    task_id="t/denoise/e-1",
    job_id="t",
    generation=GENERATION,
    inputs=[pb.Input(task_id=PLACEHOLDER, slot=HOSTILE_SLOT)],
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(FRAMES, max_size=3))
@example([b"\xff\xff\xff"])
@example([b"\x0a\x00" * 100_000])  # more commands than a frame may have
@example([b"\x0a\x00" * (3 << 20)])  # larger than a frame may be
@example(said(run("")))
@example(said(run("x" * 1_000_000)))
@example(said(run("line\nbreak")))
@example(said(run(prompt="x" * 1_000_000)))
@example(said(run(inputs=True, width=2**32 - 2, height=2**32 - 2)))
@example(said(run(inputs=True, num_inference_steps=2**32 - 1)))
@example(said(run(inputs=True, num_frames=2**32 - 3)))
@example(said(pb.Command(run=pb.Run(task_id="t", job_id="t"))))
@example(said(*[run(inputs=True)] * 50))
@example(said(*[pb.Command(run=HOSTILE)] * 2))
@example(said(run(), pb.Command(cancel=pb.Cancel(task_id="t/encode/e-1"))))
@example(said(run(), pb.Command(release=pb.Release(task_ids=["t/encode/e-1"] * 1000))))
@example(said(pb.Command(adopt=pb.Adopt(task_ids=["unknown"] * 10_000))))
def test_lies(scene: Scene, caplog: pytest.LogCaptureFixture, frames: list[Frame]) -> None:
    caplog.set_level(logging.INFO)
    caplog.clear()
    scene.loop.run_until_complete(scene.play(frames))
    for record in caplog.records:
        if record.name.startswith(("services", "transfer", "asyncio")):
            line = record.getMessage()
            assert "\n" not in line and len(line) < 2000, line
            assert record.name != "asyncio", line


async def flood(stream: grpc.aio.StreamStreamCall[pb.Commands, pb.Events]) -> None:
    asked = pb.Command(adopt=pb.Adopt(task_ids=["unknown"] * 1000))  # each is answered by a Failed
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await stream.write(pb.Commands(commands=[asked] * 10))


async def test_an_orchestrator_that_does_not_read_is_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    instance = RoleInstance(Role.ENCODER, tmp_path)
    await instance.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "MAX_EVENTS_WAITING", 5000)
            async with grpc.aio.insecure_channel(instance.url.target) as channel:
                stream = RoleStub(channel).Attach()
                writing = asyncio.create_task(flood(stream))
                await until(lambda: "does not read what it asked for" in caplog.text)
                await until(lambda: not instance.server.attached)
                assert instance.worker._sessions == []
                writing.cancel()
    finally:
        await instance.stop()


NAMES = [
    "", ".", "..", "/", "/etc/passwd", "../secret.mp4", "..\\secret.mp4", "a/../../secret.mp4", "./kept.mp4",
    "kept.mp4\0", "kept.mp4\n", "kept.mp4/", "%2e%2e%2fsecret.mp4", "kept.mp4.claim", ".mp4", "~/secret.mp4",
    "x" * 100_000, "x" * 1000 + ".mp4", "ké.mp4", "videos/kept.mp4",
]  # fmt: skip


async def test_paths_do_not_lead_out_of_the_output_directory(tmp_path: Path) -> None:
    instance = RoleInstance(Role.DECODER, tmp_path / "videos")
    await instance.start()
    try:
        files = {
            tmp_path / "secret.mp4",
            instance.directory / "kept.mp4",
            instance.directory / "kept.mp4.claim",
        }
        for file in files:
            file.write_bytes(b"content")
        async with grpc.aio.insecure_channel(instance.url.target) as channel:
            stub = RoleStub(channel)
            for name in NAMES:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    async for _ in stub.ReadFile(pb.ReadFileRequest(name=name)):
                        pass
                assert refused.value.code() is not grpc.StatusCode.UNKNOWN, name
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.DeleteFile(pb.DeleteFileRequest(name=name))
            assert all(file.read_bytes() == b"content" for file in files)
            for offset, length, expected in (
                (2**64 - 1, 2**64 - 1, b""),
                (7, 0, b""),
                (3, 2**64 - 1, b"tent"),
            ):
                request = pb.ReadFileRequest(name="kept.mp4", offset=offset, length=length)
                assert b"".join([chunk.data async for chunk in stub.ReadFile(request)]) == expected
    finally:
        await instance.stop()
