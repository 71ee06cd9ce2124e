"""The worker: tasks end in every way there is, and every slot comes back."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import torch

from services.media.files import MediaError
from services.media.formats import FORMATS, file_name
from services.media.store import media_path
from services.model.base import Control, DeviceLost, InvalidRequest, OutOfMemory, Value
from services.session import Session
from services.stage import Product
from services.task import WorkerLimits
from services.wire import endpoint_messages, slot_message
from services.worker import Worker
from tests.cluster import until
from transfer.endpoint import Held, TransferEndpoint
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Done, Event, Failed, Generation, Input, Run

POOL = 1 << 18
PRODUCER, CONSUMER = secrets.token_hex(8), secrets.token_hex(8)  # sockets are named by them


class ScriptedStage:
    """Does what the prompt says; looks at the control between steps as a model does."""

    def __init__(self) -> None:
        self.discarded = 0
        self.gate = threading.Event()
        self.activations: weakref.ref[torch.Tensor] | None = None  # of the last run

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        generation = run.generation
        activations = torch.zeros(1000)
        self.activations = weakref.ref(activations)
        if generation.prompt == "wait at the gate":
            assert self.gate.wait(20)
        if generation.prompt == "invalid":
            raise InvalidRequest("prompt: not for me")
        if generation.prompt == "disk full":
            raise MediaError("no space left")
        if generation.prompt == "broken":
            raise ZeroDivisionError("bug")
        if generation.prompt == "out of memory":
            raise OutOfMemory("cuda:0 has too little memory for this request")
        if generation.prompt == "device lost":
            raise DeviceLost("cuda:0: unspecified launch failure")
        for step in range(generation.num_inference_steps):
            control.raise_if_cancelled()
            control.progress(step + 1, generation.num_inference_steps)
        total = sum(t.sum().item() for t in inputs.values() if isinstance(t, torch.Tensor))
        return Product(run.task_id, values={"sum": torch.full((1000,), total)})

    def deliver(self, product: Product, control: Control) -> None:
        """There is nothing but the slot."""

    def discard(self, product: Product) -> None:
        self.discarded += 1

    def accept(self, product: Product) -> None:
        """There is nothing but the slot."""

    def recover(self) -> list[Product]:
        return []


class Bench:
    """A worker under test, a producer of inputs, and the session that hears of everything."""

    def __init__(
        self, stage: ScriptedStage, worker: Worker, endpoint: TransferEndpoint, producer: TransferEndpoint
    ) -> None:
        self.stage = stage
        self.worker = worker
        self.endpoint = endpoint
        self.producer = producer
        self.session = Session()
        self.events: list[Event] = []
        self.orphans = worker.attach(self.session)
        self.listening = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        async for frame in self.session.frames():
            self.events += frame.events

    async def input(self) -> tuple[Input, Held]:
        held = await self.producer.put({"x": torch.ones(100)}, timeout=5.0)
        endpoints = endpoint_messages(self.producer)
        source = Input(
            task_id="made", url=str(self.producer.url), incarnation=PRODUCER, endpoints=endpoints,
            slot=slot_message(held.location),
        )  # fmt: skip
        return source, held

    def run(self, task_id: str, prompt: str = "", inputs: list[Input] | None = None, steps: int = 3) -> None:
        generation = Generation(prompt=prompt, num_inference_steps=steps)
        self.worker.run(
            Run(task_id=task_id, job_id="j", generation=generation, inputs=inputs or []), self.session
        )

    async def outcome(self, task_id: str) -> Done | Failed:
        await until(lambda: self.find(task_id) is not None)
        found = self.find(task_id)
        assert found is not None
        return found

    def another_session(self) -> Session:
        """Of a second orchestrator, or of the next life of the first; its events are read by `heard`."""
        session = Session()
        self.orphans = self.worker.attach(session)
        return session

    def find(self, task_id: str) -> Done | Failed | None:
        for event in self.events:
            for kind in (event.done, event.failed):
                if kind.task_id == task_id:
                    return kind
        return None

    @property
    def slots_in_use(self) -> int:
        return sum(pool.stats().slots_in_use for pool in self.endpoint.pools)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    endpoint = await TransferEndpoint.start(EndpointURL.parse("grpc://127.0.0.1:1"), CONSUMER, POOL, POOL)
    producer = await TransferEndpoint.start(EndpointURL.parse("grpc://127.0.0.1:2"), PRODUCER, POOL, POOL)
    limits = WorkerLimits(capacity=64, read_seconds=2.0, pool_seconds=2.0, hold_seconds=0.05)
    stage = ScriptedStage()
    worker = Worker(stage, endpoint, limits)
    bench = Bench(stage, worker, endpoint, producer)
    yield bench
    await worker.close()
    assert bench.slots_in_use == 0
    bench.session.close()
    await bench.listening
    await endpoint.close()
    await producer.close()


async def test_a_task_reads_computes_and_holds_its_output_until_it_is_released(bench: Bench) -> None:
    source, held = await bench.input()
    bench.run("t", inputs=[source])
    done = await bench.outcome("t")
    assert isinstance(done, Done) and done.slot.length >= 4000
    kinds = [event.WhichOneof("event") for event in bench.events if not event.HasField("progress")]
    assert kinds == ["input_ready", "done"]
    assert bench.slots_in_use == 1 and not bench.worker.idle.is_set()
    bench.worker.release(["t"])
    assert bench.slots_in_use == 0 and bench.worker.idle.is_set()
    held.release()


async def test_inputs_of_the_next_task_are_read_while_one_computes(bench: Bench) -> None:
    first, held_first = await bench.input()
    second, held_second = await bench.input()
    bench.run("computing", "wait at the gate", [first])
    await until(lambda: any(e.input_ready.task_id == "computing" for e in bench.events))
    bench.run("next", inputs=[second])
    await until(lambda: any(e.input_ready.task_id == "next" for e in bench.events))
    assert bench.find("computing") is None, "it was to compute until the gate opens"
    held_second.release()  # its producer needs it no more, though its consumer has not begun
    bench.stage.gate.set()
    assert isinstance(await bench.outcome("computing"), Done)
    assert isinstance(await bench.outcome("next"), Done)
    held_first.release()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("invalid", Failed.INVALID),
        ("disk full", Failed.OUTPUT_STORE),
        ("broken", Failed.INTERNAL),
        ("out of memory", Failed.INTERNAL),
    ],
)
async def test_failures_are_told_apart(bench: Bench, prompt: str, reason: int) -> None:
    bench.run("t", prompt)
    failed = await bench.outcome("t")
    assert isinstance(failed, Failed) and failed.reason == reason and failed.message
    assert not bench.worker.tasks


@pytest.mark.parametrize("prompt", ["", "invalid", "disk full", "broken", "out of memory"])
async def test_tensors_of_a_run_go_with_it_however_it_ends(bench: Bench, prompt: str) -> None:
    """They may lie on a device, of whose memory Python's collector knows nothing: it may come late."""
    gc.disable()
    try:
        bench.run("t", prompt)
        await bench.outcome("t")
        await until(lambda: bench.stage.activations is not None and bench.stage.activations() is None)
    finally:
        gc.enable()


async def test_memory_that_runs_out_is_said_in_a_line_and_the_next_task_runs(bench: Bench) -> None:
    bench.run("large", "out of memory")
    failed = await bench.outcome("large")
    assert isinstance(failed, Failed) and failed.message == "cuda:0 has too little memory for this request"
    bench.run("small")
    assert isinstance(await bench.outcome("small"), Done)
    assert not bench.worker.lost.is_set()


async def test_of_tasks_on_a_lost_device_nothing_is_said(bench: Bench) -> None:
    """They end as those of a process that dies, and run elsewhere."""
    bench.run("t", "device lost")
    await asyncio.wait_for(bench.worker.lost.wait(), 20)
    assert bench.find("t") is None


async def test_a_recycled_input_is_lost_by_name(bench: Bench) -> None:
    source, held = await bench.input()
    held.release()
    bench.run("t", inputs=[source])
    failed = await bench.outcome("t")
    assert isinstance(failed, Failed) and failed.reason == Failed.INPUT_LOST
    assert list(failed.lost_inputs) == ["made"] and str(bench.producer.url) in failed.message


async def test_what_cannot_be_taken_is_refused(bench: Bench) -> None:
    bench.run("t")
    bench.run("t")
    assert isinstance(await bench.outcome("t"), Failed)
    bench.worker.draining = True
    bench.run("u")
    failed = await bench.outcome("u")
    assert isinstance(failed, Failed) and "draining" in failed.message


async def test_a_task_cancelled_before_it_began(bench: Bench) -> None:
    bench.run("t")
    bench.worker.cancel("t")
    failed = await bench.outcome("t")
    assert isinstance(failed, Failed) and failed.reason == Failed.CANCELLED


def heard(session: Session) -> list[str]:
    """The kinds of the events that wait to be sent."""
    return [str(event.WhichOneof("event")) for event in session._events]


async def test_outputs_outlive_the_stream_and_go_in_the_end(bench: Bench) -> None:
    bench.run("t")
    await bench.outcome("t")
    bench.worker.detach(bench.session)
    session = bench.another_session()
    assert bench.orphans == ["t"]
    bench.worker.detach(session)
    await until(lambda: not bench.worker.outputs)


async def test_an_output_is_adopted_and_its_done_comes_again(bench: Bench) -> None:
    bench.run("t")
    first = await bench.outcome("t")
    bench.worker.detach(bench.session)
    session = bench.another_session()
    bench.worker.adopt(["t"], session)
    (event,) = session._events
    assert event.done == first
    bench.worker.adopt(["t", "never seen"], session)
    assert heard(session) == ["done", "failed", "failed"], "each is adopted once"
    assert all(event.failed.reason == Failed.GONE for event in list(session._events)[1:])
    bench.worker._release_orphans()
    assert list(bench.worker.outputs) == ["t"]


async def test_a_running_task_is_adopted_with_what_was_missed(bench: Bench) -> None:
    source, held = await bench.input()
    bench.run("blocking", "wait at the gate")
    bench.run("t", inputs=[source])
    await until(lambda: bench.worker.tasks["t"].input_ready is not None)
    bench.worker.detach(bench.session)
    session = bench.another_session()
    assert bench.orphans == ["blocking", "t"]
    assert heard(session) == ["places"] and session._events[0].places.taken_by_others == 2
    bench.worker.adopt(["t"], session)
    bench.stage.gate.set()
    await until(lambda: not bench.worker.tasks)
    kinds = [kind for kind in heard(session) if kind not in ("places", "progress")]
    assert kinds == ["input_ready", "done"]
    assert session._events[-1].places.taken_by_others == 0
    held.release()


async def test_others_hear_of_orphans_when_a_stream_ends(bench: Bench) -> None:
    bench.run("t", "wait at the gate")
    session = bench.another_session()
    assert bench.orphans == [] and heard(session) == ["places"]
    bench.worker.detach(bench.session)
    assert heard(session) == ["places", "orphans"]
    assert list(session._events[-1].orphans.task_ids) == ["t"]
    bench.stage.gate.set()
    await until(lambda: not bench.worker.tasks)


async def test_a_pool_that_stays_full_is_nobodys_fault(bench: Bench) -> None:
    filler = await bench.endpoint.put({"x": torch.zeros(POOL // 4 - 1000)}, timeout=1.0)
    bench.run("t")
    failed = await bench.outcome("t")
    assert isinstance(failed, Failed) and failed.reason == Failed.REFUSED and "outbox" in failed.message
    filler.release()


async def test_draining_hands_back_what_has_not_begun_and_finishes_the_rest(bench: Bench) -> None:
    source, held = await bench.input()
    bench.run("computing", "wait at the gate")
    bench.run("read", inputs=[source])
    bench.run("waiting")
    await until(lambda: bench.worker.tasks["read"].input_ready is not None)
    await until(lambda: bench.worker.tasks["computing"].computing)
    bench.worker.drain()
    handed_back = await bench.outcome("waiting")
    assert isinstance(handed_back, Failed) and handed_back.reason == Failed.REFUSED
    bench.run("late")
    assert isinstance(await bench.outcome("late"), Failed)
    bench.stage.gate.set()
    for task in ("computing", "read"):
        assert isinstance(await bench.outcome(task), Done)
    assert not bench.worker.idle.is_set(), "their outputs are to be fetched"
    bench.worker.release(["computing", "read"])
    assert bench.worker.idle.is_set()
    held.release()


async def test_all_slots_come_back_after_any_mix(bench: Bench) -> None:
    chance = random.Random(5)
    inputs = []
    for i in range(60):
        source, held = await bench.input()
        inputs.append(held)
        if chance.random() < 0.2:
            inputs.pop().release()
        prompt = chance.choice(["", "", "", "broken", "invalid"])
        bench.run(f"t{i}", prompt, [source], steps=chance.choice([1, 2000]))
        if chance.random() < 0.4:
            for _ in range(chance.choice([0, 1, 5, 50])):
                await asyncio.sleep(0)
            bench.worker.cancel(f"t{i}")
    for i in range(60):
        await bench.outcome(f"t{i}")
    assert not bench.worker.tasks
    bench.worker.release(list(bench.worker.outputs))
    assert bench.slots_in_use == 0
    for held in inputs:
        held.release()


def test_file_names_cannot_leave_the_directory() -> None:
    assert media_path(Path("/d"), file_name("video_1/decode/e-1", FORMATS["mp4"])) == Path(
        "/d/video_1-decode-e-1.mp4"
    )
    for name in ("../x.mp4", "/etc/passwd", "a/b.mp4", "x", ".mp4", ""):
        with pytest.raises(ValueError, match="not the name"):
            media_path(Path("/d"), name)
