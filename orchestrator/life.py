"""One incarnation of a role on one stream: what it said, what it was given, what it shall be told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

from transfer.pool import arena_bytes
from transfer.urls import EndpointURL
from triptych_proto import control_pb2 as pb

# A frame costs a fifth of a millisecond of CPU and more on either side, however small. These commands can
# wait for the next one that cannot: a slot or a claim stays for a moment longer.
PATIENT = frozenset({"release", "accept"})
PATIENT_SECONDS = 0.02
MAX_COMMANDS_PER_FRAME = 256
COMMAND_BYTES_PER_FRAME = 1 << 20  # of several commands; a Run with reference images may take more, alone
MAX_COMMANDS_WAITING = 65_536  # a role that makes us answer and does not read the answers is cut off
MAX_JOBS_OF_ORPHANS = 10_000  # of one life; their role has the rest, and tells of it again
MAX_ORPHANS_OF_JOB = 8


class Life:
    """One incarnation of a peer on one stream: all that is known of it came over that stream.

    What refers to a life ends with it. Nothing else can name its slots: ``as_input`` puts together URL,
    incarnation, transfer endpoints and slot from this one entry.
    """

    def __init__(self, url: EndpointURL, hello: pb.Hello) -> None:
        self.url = url
        self.url_text = str(url)
        self.role = hello.role
        self.incarnation = hello.incarnation
        self.model = hello.model
        self.model_name = hello.model.name  # asked for at each decision: a message's fields are slow to read
        self.capacity = hello.capacity
        self.endpoints = tuple(hello.endpoints)
        self.pools = tuple(hello.pools)
        self.traffic: tuple[pb.Traffic, ...] = ()
        self.choices: tuple[pb.Choice, ...] = ()
        self.embedding_cache: pb.Cache | None = None
        self.resident_bytes = 0
        self.draining = False
        self.taken_by_others = 0  # places that other orchestrators' tasks take up
        self.orphans: dict[str, set[str]] = {}  # tasks of broken streams that are not ours to adopt, by job
        self.tasks: dict[str, float] = {}  # dispatched to it and not finished -> estimated seconds left
        self.jobs: set[str] = set()  # that have, or had, something here
        self.outbox: dict[str, int] = {}  # task -> bytes that its output takes up, or will
        self.dispatched = 0
        self.solo = ""  # a task, or a job's stage, that this instance has or shall have to itself
        self.refusing_until = 0.0  # it refused a task (monotonic)
        self._outbox_bytes = sum(pool.bytes for pool in hello.pools if pool.name == "outbox")
        self._largest_output_bytes = hello.largest_output_bytes
        self._commands: deque[pb.Command] = deque()
        self._urgent = False  # a command is among them that is not patient
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"{self.role} {self.url} ({self.incarnation})"

    @property
    def free(self) -> int:
        """Tasks it can take now."""
        if self.draining or self.solo or self.refusing_until > time.monotonic():
            return 0
        return max(self.capacity - len(self.tasks) - self.taken_by_others, 0)

    def seconds_left(self) -> float:
        """What its tasks will still compute, as far as is known."""
        return sum(self.tasks.values())

    def has_room(self, nbytes: int | None) -> bool:
        """Its outbox can take another output of ``nbytes`` (None: unknown, the largest) without waiting."""
        if not self.outbox or not self._outbox_bytes:
            return True
        return sum(self.outbox.values()) + self.slot_bytes(nbytes) <= self._outbox_bytes

    def slot_bytes(self, nbytes: int | None) -> int:
        return arena_bytes(1, self._largest_output_bytes if nbytes is None else nbytes)

    def keep_orphan(self, job_id: str, task_id: str) -> None:
        """Its job may be given to this orchestrator one day."""
        if job_id not in self.orphans and len(self.orphans) >= MAX_JOBS_OF_ORPHANS:
            return
        orphans = self.orphans.setdefault(job_id, set())
        if len(orphans) < MAX_ORPHANS_OF_JOB:
            orphans.add(task_id)

    @property
    def overwhelmed(self) -> bool:
        """It does not take in its commands, which an honest role's tasks and outputs bound."""
        return len(self._commands) > MAX_COMMANDS_WAITING

    def send(self, command: pb.Command) -> None:
        """Queues a command."""
        self._urgent |= command.WhichOneof("command") not in PATIENT
        if self._urgent or not self._commands:
            self._changed.set()
        self._commands.append(command)

    def as_input(self, done: pb.Done) -> pb.Input:
        """Where the output lies that this life reported with ``done``."""
        return pb.Input(
            task_id=done.task_id,
            url=self.url_text,
            incarnation=self.incarnation,
            endpoints=self.endpoints,
            slot=done.slot,
        )

    async def frames(self) -> AsyncIterator[pb.Commands]:
        """What is to be sent, batched; patient commands go with the next urgent one, if one comes in time."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            if not self._commands:
                await self._changed.wait()
                continue
            if not self._urgent:
                timer = loop.call_later(PATIENT_SECONDS, self._changed.set)
                try:
                    await self._changed.wait()
                finally:
                    timer.cancel()
            releases: list[str] = []
            commands: list[pb.Command] = []
            count = nbytes = 0
            while self._commands and count < MAX_COMMANDS_PER_FRAME:
                nbytes += self._commands[0].ByteSize()
                if count and nbytes > COMMAND_BYTES_PER_FRAME:
                    break
                command = self._commands.popleft()
                count += 1
                if command.HasField("release"):
                    releases += command.release.task_ids
                else:
                    commands.append(command)
            if releases:
                commands.append(pb.Command(release=pb.Release(task_ids=releases)))
            self._urgent = self._urgent and bool(self._commands)
            yield pb.Commands(commands=commands)
