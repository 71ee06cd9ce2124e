"""A scheduler without a network: role instances are objects whose commands the tests read and answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from orchestrator.jobs import Job
from orchestrator.life import Life
from orchestrator.metrics import Metrics
from orchestrator.scheduler import Fate, Scheduler, SchedulerOptions
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

ROLE_OF = {"encode": "encoder", "denoise": "denoiser", "decode": "decoder"}


class FakeInstance:
    """What a role process does on its stream, when the test says so."""

    def __init__(
        self, bench: Bench, role: str, port: int, capacity: int, outbox: int, orphans: Iterable[str]
    ):
        self.bench = bench
        self.hello = pb.Hello(
            role=role,
            incarnation=secrets.token_hex(8),
            capacity=capacity,
            model=pb.Model(name="m"),
            pools=[pb.Pool(name="outbox", bytes=outbox)],
            largest_output_bytes=4000,
            orphans=pb.Orphans(task_ids=orphans),
        )
        self.life = Life(EndpointURL("h", port), self.hello)
        self.tasks: list[str] = []  # given and not answered, in order
        self.inputs: dict[str, list[str]] = {}
        self.released: list[str] = []
        self.cancelled: list[str] = []
        self.adopted: list[str] = []
        self.accepted: list[str] = []

    def read(self) -> list[str]:
        """Takes in the commands; returns the tasks that are here now."""
        while self.life._commands:
            command = self.life._commands.popleft()
            if command.HasField("run"):
                self.tasks.append(command.run.task_id)
                self.inputs[command.run.task_id] = [source.task_id for source in command.run.inputs]
            self.released += command.release.task_ids
            self.adopted += command.adopt.task_ids
            self.accepted += command.accept.task_ids
            if command.HasField("cancel"):
                self.cancelled.append(command.cancel.task_id)
        return self.tasks

    def stages(self) -> list[str]:
        """Of the tasks that are here, by job id."""
        return [task.split("/")[0] for task in self.read()]

    def send(self, **event: object) -> None:
        self.bench.scheduler.received(self.life, pb.Event(**event))  # type: ignore[arg-type]

    def done(
        self, task_id: str | None = None, seconds: float = 1.0, nbytes: int = 1000, batch: int = 0
    ) -> None:
        task_id = task_id or self.read()[0]
        if task_id in self.tasks:
            self.tasks.remove(task_id)
        done = pb.Done(task_id=task_id, timing=pb.Timing(compute=seconds, batch=batch))
        if "/decode/" in task_id:
            done.file.CopyFrom(pb.MediaFile(name="v.mp4", bytes=1))
        else:
            done.slot.CopyFrom(pb.Slot(arena="outbox", length=nbytes))
        self.send(done=done)

    def inputs_read(self, task_id: str | None = None) -> None:
        self.send(input_ready=pb.InputReady(task_id=task_id or self.read()[0]))

    def failed(self, reason: pb.Failed.Reason.ValueType, lost: Iterable[str] = (), task: str = "") -> None:
        task_id = task or self.read()[0]
        self.tasks.remove(task_id)
        self.send(failed=pb.Failed(task_id=task_id, reason=reason, message="because", lost_inputs=lost))

    def die(self) -> None:
        self.bench.instances.remove(self)
        self.bench.scheduler.left(self.life)


class Bench:
    def __init__(self, **options: object) -> None:
        self.instances: list[FakeInstance] = []
        self.finished: list[Job] = []
        self.fate = Fate.DROP
        self.scheduler = Scheduler(
            "e2",
            lambda: [instance.life for instance in self.instances],
            self.finished.append,
            lambda job_id, task_id: self.fate,
            Metrics(),
            SchedulerOptions(**options),  # type: ignore[arg-type]
        )

    def join(
        self,
        role: str,
        port: int = 0,
        *,
        capacity: int = 2,
        outbox: int = 1 << 20,
        orphans: Iterable[str] = (),
    ) -> FakeInstance:
        port = port or 1000 + len(self.instances)
        instance = FakeInstance(self, role, port, capacity, outbox, orphans)
        self.instances.append(instance)
        self.instances.sort(key=lambda one: one.life.url)
        self.scheduler.joined(instance.life, instance.hello)
        return instance

    def submit(self, job_id: str, *, age: float = 0.0, priority: int = 0, **fields: object) -> Job:
        generation = pb.Generation(
            width=64, height=64, num_frames=5, num_inference_steps=4, guidance_scale=1.0
        )
        generation.MergeFrom(pb.Generation(**fields))  # type: ignore[arg-type]
        job = Job(job_id, "m", generation, created_at=time.time() - age, priority=priority)
        self.scheduler.add(job)
        return job
