"""What the scheduler alone does in a second of CPU, with few and with many jobs waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from benchmarks.row import Effort, Round, middle
from orchestrator.jobs import Job
from orchestrator.life import Life
from orchestrator.metrics import Metrics
from orchestrator.scheduler import Fate, Scheduler, SchedulerOptions
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

FEW, MANY = 100, 10_000
TURNS = 10  # of each in a round: a machine that others use is faster in one moment than in another
JOBS = 200  # in each
MODEL = "emulated"
INSTANCES = {"encoder": 2, "denoiser": 8, "decoder": 2}
CAPACITY = 2


@dataclass
class Instance:
    """A role that answers every task at once."""

    life: Life
    frames: AsyncIterator[pb.Commands]

    @staticmethod
    def of(role: str, port: int) -> Instance:
        hello = pb.Hello(
            role=role,
            incarnation=f"{port:016x}",
            capacity=CAPACITY,
            model=pb.Model(name=MODEL),
            pools=[pb.Pool(name="outbox", bytes=1 << 20)],
            largest_output_bytes=4096,
        )
        life = Life(EndpointURL("127.0.0.1", port), hello)
        return Instance(life, life.frames())

    async def answer(self, scheduler: Scheduler) -> None:
        """Reads what was sent to it, and reports each task as done."""
        frame = await anext(self.frames)
        for command in frame.commands:
            if not command.HasField("run"):
                continue
            task_id = command.run.task_id
            if command.run.inputs:
                scheduler.received(self.life, pb.Event(input_ready=pb.InputReady(task_id=task_id)))
            done = pb.Done(task_id=task_id, timing=pb.Timing(compute=0.001))
            if self.life.role == "decoder":
                done.file.name = "v.mp4"
            else:
                done.slot.length = 1000
            scheduler.received(self.life, pb.Event(done=done))


class Bench:
    """A scheduler with as many jobs as are asked for, and instances that compute nothing."""

    def __init__(self, depth: int) -> None:
        ports = iter(range(30101, 31000))
        self._instances = [
            Instance.of(role, next(ports)) for role, count in INSTANCES.items() for _ in range(count)
        ]
        self._finished = 0
        self._scheduler = Scheduler(
            "bench",
            lambda: [instance.life for instance in self._instances],
            self._count,
            lambda job_id, task_id: Fate.DROP,
            Metrics(),
            SchedulerOptions(),
        )
        for _ in range(depth):
            self._add()
        self._scheduler.dispatch()

    async def run(self, jobs: int) -> float:
        """Seconds of CPU for so many jobs, of three decisions each; for every one of them a new one comes."""
        first, started = self._finished, time.process_time()
        while self._finished < first + jobs:
            for instance in self._instances:
                if instance.life.tasks:
                    before = self._finished
                    await instance.answer(self._scheduler)
                    for _ in range(self._finished - before):
                        self._add()
        return (time.process_time() - started) * jobs / (self._finished - first)

    def _add(self) -> None:
        generation = pb.Generation(
            width=64, height=64, num_frames=5, num_inference_steps=4, guidance_scale=1.0
        )
        self._scheduler.add(Job.new(MODEL, generation))

    def _count(self, job: Job) -> None:
        self._finished += 1


def measure(effort: Effort) -> Iterator[Round]:
    few, many = Bench(FEW), Bench(effort.count(MANY, 2 * FEW))
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        for number in range(-1, effort.rounds):  # the first warms up
            jobs, seconds = effort.count(JOBS, 50), dict.fromkeys((few, many), 0.0)
            for turn in range(TURNS):
                for bench in (few, many) if turn % 2 else (many, few):
                    seconds[bench] += loop.run_until_complete(bench.run(jobs))
            rates = {bench: TURNS * jobs / seconds[bench] for bench in seconds}
            if number >= 0:
                yield Round(rates[many] / rates[few], {"few": rates[few], "many": rates[many]})
        loop.run_until_complete(loop.shutdown_asyncgens())


def summary(rounds: list[Round]) -> str:
    few, many = (middle(rounds, name) for name in ("few", "many"))
    return (
        f"{few:.0f} jobs per second of CPU with {FEW} waiting, {many:.0f} with {MANY}, each of three stages"
    )
