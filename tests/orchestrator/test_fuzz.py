"""Roles that lie: whatever comes over their streams, honest work goes on and nothing that is shown breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import life, peers
from orchestrator.jobs import Job, Status
from orchestrator.peers import State
from tests.cluster import Cluster, finished, until
from tests.mutation import mutated
from tests.orchestrator.fake_role import FakeRole, frame, hello
from triptych_proto import control_pb2 as pb

ROLES = ("encoder", "denoiser", "decoder")
GIVEN = "@given"  # in the place of a task id: a task that this role was given
STRANGE_IDS = ["video_0/encode/e-1", "video_0/decode/e-9999999999999", "a/b/c/d", "//"]

Frame = pb.Events | bytes


def events_of(task: str) -> list[pb.Event]:
    """What an honest role could say of a task."""
    slot = pb.Slot(arena="outbox", length=100, generation=1, manifest=b"{}")
    file = pb.MediaFile(name="@file.mp4", bytes=100, content_type="video/mp4", fps=8, width=8, height=8)
    transfer = pb.Transfer(from_task_id=task, engine="shm", bytes=100, seconds=0.1)
    return [
        pb.Event(accepted=pb.Accepted(task_id=task)),
        pb.Event(input_ready=pb.InputReady(task_id=task, transfers=[transfer])),
        pb.Event(progress=pb.Progress(task_id=task, step=1, total=4)),
        pb.Event(done=pb.Done(task_id=task, slot=slot, timing=pb.Timing(compute=0.1))),
        pb.Event(done=pb.Done(task_id=task, file=file, timing=pb.Timing(compute=0.1))),
        pb.Event(failed=pb.Failed(task_id=task, message="it did not work", lost_inputs=[task])),
        pb.Event(orphans=pb.Orphans(task_ids=[task, *STRANGE_IDS])),
    ]


STATS = pb.Stats(
    pools=[pb.Pool(name="outbox", bytes=100, free_bytes=50)],
    traffic=[pb.Traffic(engine="shm", direction="in", count=1, bytes=100, seconds=0.1)],
    choices=[pb.Choice(url="grpc://127.0.0.1:1", engine="shm", reason="first choice")],
    embedding_cache=pb.Cache(hits=2, misses=3, evictions=1, entries=2, bytes=10, limit_bytes=20),
)
EVENTS = [
    *(event for task in (GIVEN, STRANGE_IDS[0]) for event in events_of(task)),
    pb.Event(stats=STATS),
    pb.Event(places=pb.Places(taken_by_others=1)),
    pb.Event(hello=hello()),
]
TEXTS = st.sampled_from([GIVEN, *STRANGE_IDS]) | st.text(st.characters(codec="utf-8"), max_size=8)
HELLOS = mutated(st.sampled_from([hello(role) for role in ROLES]), TEXTS, most=1)
FRAMES: st.SearchStrategy[Frame] = st.builds(
    lambda events: pb.Events(events=events),
    st.lists(mutated(st.sampled_from(EVENTS), TEXTS, most=2), max_size=4),
) | st.binary(max_size=20)
STREAMS = st.tuples(
    st.builds(lambda hello: pb.Events(events=[pb.Event(hello=hello)]), HELLOS) | FRAMES,
    st.lists(FRAMES, max_size=6),
).map(lambda parts: [parts[0], *parts[1]])


class Liar:
    """A role whose streams say what the test has put into ``frames``."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.frames: list[Frame] = []
        self.told = 0  # streams on which all of it was said, or that were cut before
        self.fake = FakeRole(self._script)

    async def _script(self, fake: FakeRole) -> AsyncIterator[bytes]:
        fake.given.clear()
        fake.has_work.clear()
        try:
            for number, said in enumerate(self.frames):
                if number == 1:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(fake.has_work.wait(), 0.02)
                yield self._filled_in(said, fake)
        finally:
            self.told += 1

    def _filled_in(self, said: Frame, fake: FakeRole) -> bytes:
        if isinstance(said, bytes):
            return said
        task = fake.given[-1] if fake.given else "video_0/encode/e-2"
        data = said.SerializeToString()
        if len(data) > 200_000:
            return data
        filled = pb.Events()
        filled.CopyFrom(said)
        for event in filled.events:
            kind = event.WhichOneof("event")
            message = getattr(event, kind) if kind else None
            if getattr(message, "task_id", "") == GIVEN:
                message.task_id = task
            if kind == "hello" and event.hello.role in ROLES:
                event.hello.role = self.role
            if kind == "done" and event.done.file.name == "@file.mp4":
                event.done.file.name = task.replace("/", "-") + ".mp4"
        return filled.SerializeToString()


class Scene:
    """Honest roles and liars under one orchestrator, over all examples."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = directory
        self.bait: list[Job] = []

    async def open(self) -> None:
        self.liars = [Liar(role) for role in ROLES]
        for liar in self.liars:
            await liar.fake.__aenter__()
        self.cluster = Cluster(self.directory)
        options = self.cluster.options
        peers = (*options.peers, *((liar.fake.url, liar.role) for liar in self.liars))
        self.cluster.options = replace(options, peers=peers)
        for instance in self.cluster.roles:
            await instance.start()
        await self.cluster.start_orchestrator()
        await until(lambda: len(self.cluster.orchestrator.models()) >= 1)

    async def close(self) -> None:
        await self.cluster.slots_back()
        await self.cluster.__aexit__()
        for liar in self.liars:
            await liar.fake.__aexit__()

    async def play(self, frames: list[Frame]) -> None:
        """The liars say ``frames``, at least once each, while honest work is done."""
        orchestrator = self.cluster.orchestrator
        if all(job.status.final for job in self.bait):
            generation = hello().model.defaults
            self.bait.append(await orchestrator.submit("fake", generation, timeout=3600.0))
        for liar in self.liars:
            liar.frames, liar.told = frames, 0
        (honest,) = [model for model in orchestrator.models() if model.name == "emulated"]
        job = await orchestrator.submit("emulated", honest.defaults)
        self.check()
        await until(lambda: all(liar.told >= 2 for liar in self.liars))
        self.check()
        await finished(job)
        assert job.status is Status.COMPLETED, job.error
        assert job.file_url == str(self.cluster.roles[2].url)

    def check(self) -> None:
        """All that operators and clients look at can be rendered, and is small."""
        orchestrator = self.cluster.orchestrator
        shown = json.dumps(orchestrator.peer_entries(), allow_nan=False)
        metrics = generate_latest(orchestrator.registry).decode()
        assert len(shown) < 1 << 20 and len(metrics) < 1 << 20
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
        names = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
        assert len(set(names)) == len(names)
        assert all(sample.value >= 0 and sample.value != float("inf") for sample in samples)
        for job in self.bait:
            json.dumps([vars(attempt) for attempt in job.attempts], allow_nan=False)
        for liar in self.liars:
            life = orchestrator.peers[liar.fake.url].life
            assert life is None or sum(map(len, life.orphans.values())) < 100_000


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    asyncio.set_event_loop(scene.loop)
    with patch.object(peers, "BROKEN_SECONDS", (0.0,)), patch.object(peers, "RETRY_SECONDS", (0.0,)):
        scene.loop.run_until_complete(scene.open())
        yield scene
        scene.loop.run_until_complete(scene.close())
    asyncio.set_event_loop(None)
    scene.loop.close()


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


GREETING = pb.Events(events=[pb.Event(hello=hello())])


def said(*events: pb.Event) -> list[Frame]:
    return [GREETING, pb.Events(events=events)]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(STREAMS)
@example([b"\xff\xff\xff"])
@example([b""])
@example([GREETING, b"\x00garbage"])
@example([GREETING, b"\x0a\x00" * 5000])
@example([GREETING, b"\x0a\x00" * (3 << 20)])  # larger than a frame may be
@example([pb.Events(events=[pb.Event(hello=hello(capacity=2**32 - 1))])])
@example([GREETING, GREETING])
@example(said(pb.Event(orphans=pb.Orphans(task_ids=[f"video_{n}/decode/e-1" for n in range(100_000)]))))
@example(said(pb.Event(places=pb.Places(taken_by_others=2**32 - 1))))
@example(said(pb.Event(stats=pb.Stats(pools=[pb.Pool(name="a", bytes=2**64 - 1, free_bytes=2**64 - 1)]))))
@example(said(pb.Event(stats=pb.Stats(pools=[pb.Pool(name="a")] * 2))))
@example(said(pb.Event(failed=pb.Failed(task_id=GIVEN, reason=99, message="x"))))  # type: ignore[arg-type]
@example(said(pb.Event(failed=pb.Failed(task_id=GIVEN, message="a\nb\0" * 100_000))))
@example(said(pb.Event(done=pb.Done(task_id=GIVEN))))
@example(said(pb.Event(progress=pb.Progress(task_id=GIVEN, step=2**32 - 1, total=1))))
@example(said(pb.Event(progress=pb.Progress(task_id=GIVEN, step=1, total=0))))
@example(said(*events_of(GIVEN), *events_of(GIVEN)))
def test_lies(scene: Scene, log_lines: pytest.LogCaptureFixture, frames: list[Frame]) -> None:
    log_lines.clear()
    scene.loop.run_until_complete(scene.play(frames))
    for record in log_lines.records:
        if not record.name.startswith(("orchestrator", "asyncio")):
            continue  # the liars' own servers do not like it when they are hung up on
        line = record.getMessage()
        assert "\n" not in line and len(line) < 1500, line
        # Every breach is known as one: nothing is left to the net below.
        assert record.exc_info is None, record
        assert record.name != "asyncio", line


def test_a_role_that_breaks_the_contract_is_shown_and_logged_once(
    scene: Scene, log_lines: pytest.LogCaptureFixture
) -> None:
    frames: list[Frame] = [GREETING, pb.Events(events=[pb.Event(done=pb.Done(task_id="\n"))])]
    log_lines.clear()

    async def play() -> None:
        await scene.play(frames)
        scene.liars[0].told = 0
        await until(lambda: scene.liars[0].told >= 5)

    with patch.object(peers, "BROKEN_SECONDS", (0.02,)):
        scene.loop.run_until_complete(play())
    url = scene.liars[0].fake.url
    peer = scene.cluster.orchestrator.peers[url]
    scene.loop.run_until_complete(until(lambda: peer.state is State.REFUSED))
    (entry,) = [e for e in scene.cluster.orchestrator.peer_entries() if e["url"] == str(url)]
    assert str(entry["refusal"]).startswith("it breaks the contract: Done.task_id is '\\n', expected")
    lines = [r for r in log_lines.records if str(url) in r.getMessage() and r.levelno >= logging.ERROR]
    assert len(lines) == 1


async def test_a_role_that_does_not_read_its_commands_is_cut_off(tmp_path: Path) -> None:
    async def script(fake: FakeRole) -> AsyncIterator[bytes]:
        yield frame(pb.Event(hello=hello()))
        done = pb.Done(slot=pb.Slot(arena="outbox"))
        for first in range(0, 10**9, 1000):  # each is answered by a Release
            yield frame(
                *(
                    pb.Event(done=pb.Done(task_id=f"t-{n}", slot=done.slot))
                    for n in range(first, first + 1000)
                )
            )

    async with FakeRole(script, reads=False) as fake:
        cluster = Cluster(tmp_path, peers=((fake.url, "denoiser"),))
        with patch.object(life, "MAX_COMMANDS_WAITING", 5000):
            await cluster.start_orchestrator()
            peer = cluster.orchestrator.peers[fake.url]
            await until(lambda: peer.state is State.REFUSED)
            assert "does not read its commands" in peer.refusal
            await cluster.orchestrator.close()
