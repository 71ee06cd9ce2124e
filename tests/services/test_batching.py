"""Tasks that share a loop: each ends once and as alone, whatever becomes of the others."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.model.base import Control, InvalidRequest, Lane, Value
from services.model.batch import run_lanes
from services.options import RoleOptions, add_arguments
from services.role import Role
from services.session import Session
from services.stage import Product, Work
from services.task import WorkerLimits
from services.wire import endpoint_messages, slot_message
from services.worker import Worker
from tests.cluster import until
from transfer.endpoint import Held, TransferEndpoint
from transfer.urls import EndpointURL
from triptych_proto.control_pb2 import Done, Event, Failed, Generation, Input, Run

POOL = 1 << 18
PRODUCER, CONSUMER = secrets.token_hex(8), secrets.token_hex(8)  # sockets are named by them
SHAPE = 64
LIMITS = WorkerLimits(capacity=64, read_seconds=5.0, pool_seconds=5.0, hold_seconds=5.0, max_batch=4)


class SteppedStage:
    """Computes a step for each permit. What a task makes tells what it was given."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.loops: list[list[str]] = []  # the tasks of each, in order
        self.too_many = 99  # lanes of a loop that fails for its size

    def go_on(self) -> None:
        """As many permits as anybody can need."""
        self.permits.release(100_000)

    def batch_key(self, run: Run, inputs: Mapping[str, Value]) -> Hashable:
        return run.generation.width or None

    def run(self, run: Run, inputs: Mapping[str, Value], control: Control) -> Product:
        self.loops.append([run.task_id])
        _open(Lane(run.generation, inputs, control))
        self._steps([run.generation], control)
        return Product(run.task_id, values=_made(run.generation, inputs))

    def run_batch(self, works: Sequence[Work]) -> Sequence[Product | Exception]:
        self.loops.append([work.run.task_id for work in works])
        assert len({work.run.generation.width for work in works}) == 1, "shapes were mixed"
        lanes = [Lane(work.run.generation, work.inputs, work.control) for work in works]

        def loop(lanes: list[Lane], made: list[dict[str, Value]], control: Control) -> list[dict[str, Value]]:
            if len(lanes) >= self.too_many:
                raise MemoryError
            self._steps([lane.generation for lane in lanes], control)
            return made

        return [
            outcome
            if isinstance(outcome, Exception)
            else Product(work.run.task_id, values=outcome, batch=len(works))
            for work, outcome in zip(works, run_lanes(lanes, _open, loop), strict=True)
        ]

    def _steps(self, generations: Sequence[Generation], control: Control) -> None:
        for step in range(3):
            control.raise_if_cancelled()
            assert self.permits.acquire(timeout=30)
            if step == 1 and any(generation.prompt == "poison" for generation in generations):
                raise ZeroDivisionError("bug")
            control.progress(step + 1, 3)

    def deliver(self, product: Product, control: Control) -> None:
        """There are no files."""

    def discard(self, product: Product) -> None:
        """There is nothing to undo."""

    def accept(self, product: Product) -> None:
        """There is nothing but the slot."""

    def recover(self) -> list[Product]:
        return []


def _open(lane: Lane) -> dict[str, Value]:
    if lane.generation.prompt == "invalid":
        raise InvalidRequest("prompt: not for me")
    return _made(lane.generation, lane.inputs)


def _made(generation: Generation, inputs: Mapping[str, Value]) -> dict[str, Value]:
    values = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    return {"made": torch.tensor([float(generation.seed), *(float(value.sum()) for value in values)])}


class Bench:
    """A worker under test, a producer of inputs, and all that was said."""

    def __init__(self, stage: SteppedStage, worker: Worker, endpoints: Sequence[TransferEndpoint]) -> None:
        self.stage = stage
        self.worker = worker
        self.endpoint, self.producer = endpoints
        self.session = Session()
        self.events: list[Event] = []
        self.given: list[Held] = []
        worker.attach(self.session)
        self.listening = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        async for frame in self.session.frames():
            self.events += frame.events

    async def input(self, number: int) -> Input:
        held = await self.producer.put({"x": torch.full((10,), float(number))}, timeout=5.0)
        self.given.append(held)
        endpoints = endpoint_messages(self.producer)
        return Input(
            task_id="made", url=str(self.producer.url), incarnation=PRODUCER, endpoints=endpoints,
            slot=slot_message(held.location),
        )  # fmt: skip

    async def run(self, number: int, prompt: str = "", width: int = SHAPE) -> str:
        """A task that is at the door, with inputs of its own; its id."""
        request = Generation(prompt=prompt, width=width, seed=number)
        task_id = f"t{number}"
        inputs = [await self.input(number)]
        self.worker.run(Run(task_id=task_id, job_id="j", generation=request, inputs=inputs), self.session)
        return task_id

    async def queued(self, number: int, prompt: str = "", width: int = SHAPE) -> str:
        """A task whose inputs are here: it waits for its turn behind all before it."""
        task = self.worker.tasks[task_id := await self.run(number, prompt, width)]
        await until(lambda: task.input_ready is not None)
        return task_id

    async def computing(self, task_id: str) -> None:
        await until(lambda: self.worker.tasks[task_id].computing)

    def ends(self, task_id: str) -> list[Done | Failed]:
        found = [getattr(event, event.WhichOneof("event")) for event in self.events]
        return [end for end in found if isinstance(end, (Done, Failed)) and end.task_id == task_id]

    async def end(self, task_id: str) -> Done | Failed:
        await until(lambda: bool(self.ends(task_id)))
        (end,) = self.ends(task_id)
        return end

    async def made(self, task_id: str, number: int) -> Done:
        """It is done, with what belongs to it."""
        end = await self.end(task_id)
        assert isinstance(end, Done), end
        values = self.worker.outputs[task_id].product.values
        assert values is not None and isinstance(values["made"], torch.Tensor)
        assert values["made"].tolist() == [number, 10.0 * number]
        return end

    @property
    def slots_in_use(self) -> int:
        return sum(pool.stats().slots_in_use for pool in self.endpoint.pools)


@asynccontextmanager
async def benches(limits: WorkerLimits = LIMITS) -> AsyncIterator[Bench]:
    endpoint = await TransferEndpoint.start(EndpointURL.parse("grpc://127.0.0.1:1"), CONSUMER, POOL, POOL)
    producer = await TransferEndpoint.start(EndpointURL.parse("grpc://127.0.0.1:2"), PRODUCER, POOL, POOL)
    stage = SteppedStage()
    worker = Worker(stage, endpoint, limits)
    bench = Bench(stage, worker, (endpoint, producer))
    try:
        yield bench
    finally:
        stage.go_on()
        await worker.close()
        bench.session.close()
        await bench.listening
        slots = bench.slots_in_use
        await endpoint.close()
        await producer.close()
    assert slots == 0, "a slot did not come back"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with benches() as bench:
        yield bench


async def gathered(bench: Bench, *prompts: str, width: int = SHAPE) -> list[str]:
    """A task that computes, and others of one shape that wait behind it."""
    first = await bench.run(0, width=1)
    await bench.computing(first)
    return [await bench.queued(number, prompt, width) for number, prompt in enumerate(prompts, 1)]


async def test_what_waits_shares_a_loop_and_nothing_waits_for_more(bench: Bench) -> None:
    ids = await gathered(bench, *[""] * 6)
    bench.stage.go_on()
    for number, task_id in enumerate(["t0", *ids]):
        done = await bench.made(task_id, number)
        assert done.timing.batch == (1 if number == 0 else 4 if number <= 4 else 2)
    assert bench.stage.loops == [["t0"], ids[:4], ids[4:]]


async def test_shapes_are_not_mixed_and_the_oldest_goes_first(bench: Bench) -> None:
    await gathered(bench)
    ids = [await bench.queued(number, width=8 if number % 2 else 16) for number in range(1, 7)]
    alone = [await bench.queued(number, width=0) for number in (7, 8)]
    bench.stage.go_on()
    for number, task_id in enumerate(ids, 1):
        await bench.made(task_id, number)
    for task_id in alone:
        assert isinstance(await bench.end(task_id), Done)
    assert bench.stage.loops[1:] == [["t1", "t3", "t5"], ["t2", "t4", "t6"], ["t7"], ["t8"]]


@pytest.mark.parametrize(
    ("words", "capacity"), [([], 2), (["--max-batch", "4"], 8), (["--max-batch", "4", "--prefetch", "0"], 4)]
)
def test_a_batch_can_gather_while_another_computes(words: list[str], capacity: int) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Role.DENOISER)
    given = parser.parse_args(["--model", "m", "--url", "grpc://127.0.0.1:1", *words])
    assert RoleOptions.from_arguments(Role.DENOISER, given).capacity == capacity


async def test_without_batches_each_runs_alone() -> None:
    async with benches(replace(LIMITS, max_batch=1)) as bench:
        ids = await gathered(bench, "", "", "")
        bench.stage.go_on()
        for task_id in ids:
            assert isinstance(await bench.end(task_id), Done)
        assert bench.stage.loops == [["t0"], ["t1"], ["t2"], ["t3"]]


async def test_a_cancelled_task_ends_at_once_and_leaves_the_others_whole(bench: Bench) -> None:
    ids = await gathered(bench, "", "", "")
    bench.stage.permits.release(3)
    await bench.computing(ids[0])
    bench.worker.cancel(ids[1])
    bench.stage.permits.release()  # to the step after which the cancel is seen
    failed = await bench.end(ids[1])
    assert isinstance(failed, Failed) and failed.reason == Failed.CANCELLED
    assert ids[1] not in bench.worker.tasks and not bench.ends(ids[0])
    again = await bench.run(9)  # its place is free, though its lane is not
    bench.stage.go_on()
    await bench.made(ids[0], 1)
    await bench.made(ids[2], 3)
    await bench.made(again, 9)
    assert bench.stage.loops == [["t0"], ids, [again]]


async def test_a_loop_ends_with_the_last_of_its_tasks(bench: Bench) -> None:
    ids = await gathered(bench, "", "")
    bench.stage.permits.release(3)
    await bench.computing(ids[0])
    for task_id in ids:
        bench.worker.cancel(task_id)
    bench.stage.permits.release()  # the second step is never asked for
    for task_id in ids:
        failed = await bench.end(task_id)
        assert isinstance(failed, Failed) and failed.reason == Failed.CANCELLED
    bench.stage.permits.release(3)
    await bench.made(await bench.run(5), 5)


async def test_a_request_that_cannot_begin_fails_alone(bench: Bench) -> None:
    ids = await gathered(bench, "", "invalid", "")
    bench.stage.go_on()
    failed = await bench.end(ids[1])
    assert isinstance(failed, Failed) and failed.reason == Failed.INVALID
    await bench.made(ids[0], 1)
    await bench.made(ids[2], 3)
    assert bench.stage.loops == [["t0"], ids]


async def test_a_request_that_breaks_its_loop_takes_nobody_along(bench: Bench) -> None:
    ids = await gathered(bench, "", "poison", "")
    bench.stage.go_on()
    failed = await bench.end(ids[1])
    assert isinstance(failed, Failed) and failed.reason == Failed.INTERNAL
    for number in (0, 2):
        done = await bench.made(ids[number], number + 1)
        assert done.timing.batch == 1
    assert bench.stage.loops == [["t0"], ids, *([task_id] for task_id in ids)]
    more = await gathered_again(bench, 10)
    assert bench.stage.loops[-1] == more, "the shape is not to blame"


async def test_loops_that_were_too_large_get_smaller(bench: Bench) -> None:
    bench.stage.too_many = 3
    ids = await gathered(bench, *[""] * 7)
    bench.stage.go_on()
    for number, task_id in enumerate(ids, 1):
        await bench.made(task_id, number)
    sizes = [len(loop) for loop in bench.stage.loops[1:]]
    assert sizes == [4, 1, 1, 1, 1, 3, 1, 1, 1]
    again = await gathered_again(bench, 20)
    assert bench.stage.loops[-2:] == [again[:2], again[2:]]


async def gathered_again(bench: Bench, number: int) -> list[str]:
    bench.stage.permits = threading.Semaphore(0)
    await bench.run(number, width=1)
    await bench.computing(f"t{number}")
    ids = [await bench.queued(number + i) for i in range(1, 5)]
    bench.stage.go_on()
    for task_id in ids:
        await bench.end(task_id)
    return ids


async def test_draining_finishes_the_batch_and_what_has_read_its_inputs(bench: Bench) -> None:
    ids = await gathered(bench, "", "", "")
    bench.stage.permits.release(3)
    await bench.computing(ids[0])
    late = await bench.queued(7)
    bench.worker.drain()
    bench.stage.go_on()
    for number, task_id in enumerate([*ids, late]):
        await bench.made(task_id, number + 1 if task_id != late else 7)
    bench.worker.release(list(bench.worker.outputs))
    await asyncio.wait_for(bench.worker.idle.wait(), 10)


Action = tuple[object, ...]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"),
            st.sampled_from(["", "", "", "invalid", "poison"]),
            st.sampled_from([SHAPE, SHAPE, 8, 0]),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("steps"), st.integers(1, 4)),
        st.tuples(st.just("settle")),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(actions=ACTIONS, max_batch=st.integers(1, 5))
def test_every_task_ends_once_and_all_slots_come_back(
    actions: list[tuple[object, ...]], max_batch: int
) -> None:
    asyncio.run(carried_out(actions, max_batch))


async def carried_out(actions: list[tuple[object, ...]], max_batch: int) -> None:
    async with benches(replace(LIMITS, max_batch=max_batch)) as bench:
        prompts: list[str] = []
        cancelled: set[int] = set()
        for kind, *arguments in actions:
            if kind == "arrive":
                prompt, width = arguments
                assert isinstance(prompt, str) and isinstance(width, int)
                prompts.append(prompt)
                await bench.run(len(prompts) - 1, prompt, width)
            elif kind == "cancel" and prompts:
                (number,) = arguments
                assert isinstance(number, int)
                number %= len(prompts)
                if bench.worker.tasks.get(f"t{number}"):  # else it would release an output
                    cancelled.add(number)
                bench.worker.cancel(f"t{number}")
            elif kind == "steps":
                (count,) = arguments
                assert isinstance(count, int)
                bench.stage.permits.release(count)
            else:
                for _ in range(20):
                    await asyncio.sleep(0)
        bench.stage.go_on()
        await until(lambda: not bench.worker.tasks)
        await until(lambda: all(bench.ends(f"t{number}") for number in range(len(prompts))))
        for number, prompt in enumerate(prompts):
            (end,) = bench.ends(f"t{number}")
            expected = {"": None, "invalid": Failed.INVALID, "poison": Failed.INTERNAL}[prompt]
            reason = end.reason if isinstance(end, Failed) else None
            assert reason == expected or (number in cancelled and reason == Failed.CANCELLED)
            if reason is None and f"t{number}" in bench.worker.outputs:
                await bench.made(f"t{number}", number)
        runs = Counter(task_id for loop in bench.stage.loops for task_id in loop)
        assert all(count <= 2 for count in runs.values()), "a task ran again more than once"
        assert all(len(loop) <= max_batch for loop in bench.stage.loops)
        bench.worker.release(list(bench.worker.outputs))
        assert bench.worker.idle.is_set()


async def test_tensors_are_not_spelled_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``deque`` that misses what it shall remove spells it out in its error, which takes milliseconds."""
    spelled: list[str] = []
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda self: spelled.append("") or "tensor")
    bench.stage.go_on()
    await bench.made(await bench.run(0), 0)
    assert not spelled
