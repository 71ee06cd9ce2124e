"""Chaos: load while processes are killed, frozen, drained and restarted at random; nothing may be lost.

``python -m tests.chaos --seconds 60 --seeds 1`` prints what it did and what it found.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from deploy.onebox import OneBox, Process
from deploy.ports import free_port
from orchestrator.client import ClientError, VideoClient
from tests import remains
from tests.load import MODEL, Load
from tests.ports import role_urls

COUNTS = {"encoder": 2, "denoiser": 3, "decoder": 2}
DRAIN = ("--drain-seconds", "20")
CLIENTS = 10
STATS_SECONDS = 5.0  # roles report their pools this often
SETTLE_SECONDS = 120.0  # at the end, for all to be well again
EXIT_SECONDS = 90.0  # after SIGTERM
TO_ORCHESTRATOR = 0.25  # share of the faults
TWO_AT_ONCE = 0.2
KEEPALIVE_SECONDS = 4.0
FAULTS = {  # and how long between its two halves, at least and at most
    "kill": (0.0, 1.0),
    "terminate": (0.0, 1.0),
    "drain": (0.0, 3.0),
    "freeze for a moment": (0.2, KEEPALIVE_SECONDS - 1),
    "freeze": (KEEPALIVE_SECONDS + 1, KEEPALIVE_SECONDS + 5),
}
ORCHESTRATOR_FAULTS = (
    "kill",
    "kill",
    "terminate",
    "freeze for a moment",
    "freeze",
)  # it has nothing to drain


@dataclass
class Report:
    """What was done, and what was found."""

    faults: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    deleted: int = 0
    played: int = 0  # files that were downloaded and decoded
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return bool(self.completed) and not self.findings

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        return "\n".join(
            [
                f"faults: {faults or 'none'}",
                f"{self.completed} videos completed, {self.played} of them played, {self.deleted} deleted",
                *(f"FOUND: {finding}" for finding in self.findings),
                "nothing found" if self.clean else f"{len(self.findings)} FINDINGS",
            ]
        )


class Chaos:
    """One run over a system that is up."""

    def __init__(self, box: OneBox, seed: int, seconds: float, directory: Path) -> None:
        self.report = Report()
        # All processes there ever were; each leads a session of its own.
        self.leaders = {process.pid: remains.started(process.pid) for process in box.processes}
        self._box = box
        self._log = directory / "log"
        self._names = [process.name for process in box.processes]
        self._chance = random.Random(seed)
        self._end = time.monotonic() + seconds
        self._load = Load(box.url, seed, directory, self.report.findings)

    async def run(self) -> Report:
        async with VideoClient(self._box.url) as client:
            await asyncio.gather(
                self._disturb(client), *(self._load.run(client, self._end) for _ in range(CLIENTS))
            )
            await self._recovered(client)
            completed = await self._load.verify()
            self.report.completed, self.report.deleted = len(completed), len(self._load.deleted)
            self.report.played = self._load.played
            found = remains.files(self._box.data_dir / "videos", completed)
            self.report.findings += [f"videos/: {wrong}" for wrong in found]
        return self.report

    @property
    def incarnations(self) -> set[str]:
        """Of all roles there ever were, from their log."""
        return set(re.findall(r"incarnation ([0-9a-f]{16}) of the", self._log.read_text(errors="replace")))

    # ---- faults

    async def _disturb(self, client: VideoClient) -> None:
        while time.monotonic() < self._end:
            await asyncio.sleep(self._chance.uniform(0.3, 3.0))
            self._note_deaths()
            victims = {self._victim() for _ in range(2 if self._chance.random() < TWO_AT_ONCE else 1)}
            plans = []
            for name in sorted(victims):
                fault = self._chance.choice(
                    [*FAULTS, "kill"] if name != "orchestrator" else ORCHESTRATOR_FAULTS
                )
                plans.append((fault, name, self._chance.uniform(*FAULTS[fault])))
            await asyncio.gather(*(self._fault(client, *plan) for plan in plans))

    def _victim(self) -> str:
        if self._chance.random() < TO_ORCHESTRATOR:
            return "orchestrator"
        return self._chance.choice([name for name in self._names if name != "orchestrator"])

    async def _fault(self, client: VideoClient, fault: str, name: str, seconds: float) -> None:
        victim = self._process(name)
        self.report.faults[f"{fault} {name.split()[0]}"] += 1
        print(f"{time.strftime('%H:%M:%S')} {fault}: {name}", flush=True)
        if fault.startswith("freeze"):
            victim.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            victim.send_signal(signal.SIGCONT)
            return
        if fault == "drain":
            try:
                await client.drain(name.split()[1])
            except ClientError:
                pass  # it, or the orchestrator, is just not there
            await asyncio.sleep(seconds)
        await self._restart(victim, signal.SIGKILL if fault == "kill" else signal.SIGTERM, seconds)

    async def _restart(self, victim: Process, number: signal.Signals, seconds: float) -> None:
        graceful = number is signal.SIGTERM and remains.handles(victim.pid, number)
        victim.send_signal(number)
        try:
            await asyncio.to_thread(victim.wait, EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.report.findings.append(f"{victim.name} did not end after {number.name}")
            victim.kill()
            victim.wait()
        expected = 0 if graceful else -number
        if victim.returncode != expected:
            self.report.findings.append(
                f"{victim.name} ended with {victim.returncode} after {number.name}, not {expected}"
            )
        self._box.processes.remove(victim)
        await asyncio.sleep(seconds)
        self._start(victim.name)

    def _start(self, name: str) -> None:
        box = self._box
        process = box.start_orchestrator() if name == "orchestrator" else box.start_role(*name.split())
        self.leaders[process.pid] = remains.started(process.pid)

    def _process(self, name: str) -> Process:
        return next(process for process in self._box.processes if process.name == name)

    def _note_deaths(self) -> None:
        """Processes that ended by themselves."""
        for process in list(self._box.processes):
            if process.poll() is not None:
                self.report.findings.append(f"{process.name} ended by itself with {process.returncode}")
                self._box.processes.remove(process)
                self._start(process.name)

    # ---- the end

    async def _recovered(self, client: VideoClient) -> None:
        """All is well, and still so when every role has reported once more; else what is wrong is noted."""
        deadline = time.monotonic() + SETTLE_SECONDS
        well_since = None
        while True:
            wrong = await self._wrong(client)
            now = time.monotonic()
            well_since = (well_since or now) if not wrong else None
            if well_since is not None and now - well_since > STATS_SECONDS + 1:
                break
            if now > deadline:
                self.report.findings += wrong
                break
            await asyncio.sleep(0.2)
        self._note_deaths()

    async def _wrong(self, client: VideoClient) -> list[str]:
        try:
            unfinished = await self._load.unfinished()
            entries = (await client.peers())["data"]
        except ClientError as error:
            return [f"the orchestrator does not answer: {error}"]
        wrong = [f"{video} is not finished" for video in unfinished]
        for entry in entries:
            if entry["state"] != "ready":
                wrong.append(f"{entry['url']} is {entry['state']}")
            wrong += [
                f"{entry['role']} {entry['url']}: {pool['slots_in_use']} slots of its {pool['name']} in use"
                for pool in entry.get("pools", [])
                if pool["slots_in_use"]
            ]
            if entry.get("running"):
                wrong.append(f"{entry['role']} {entry['url']} runs {entry['running']} tasks")
        live = {entry.get("incarnation") for entry in entries}
        left = remains.sockets(self.incarnations - live)
        wrong += [f"the socket of the dead {incarnation} is there" for incarnation in left]
        return wrong + remains.dead_memory({process.pid for process in self._box.processes})


def run(seed: int, seconds: float, directory: Path) -> Report:
    """Chaos for ``seconds`` over a system of its own, whose data and log go to ``directory``."""
    with (directory / "log").open("wb") as log:
        box = OneBox(MODEL, port=free_port(), data_dir=directory / "data", role_arguments=DRAIN, log=log)
        box.role_urls = role_urls(COUNTS)
        with box:
            box.wait_ready(SETTLE_SECONDS)
            chaos = Chaos(box, seed, seconds, directory)
            report = asyncio.run(chaos.run())
    words = [str(directory / "data"), *(url for urls in box.role_urls.values() for url in urls)]
    report.findings += remains.processes(chaos.leaders, words)
    report.findings += [f"socket {name} at the end" for name in remains.sockets(chaos.incarnations)]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="of load, for each seed (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each (default: %(default)s)"
    )
    parser.add_argument(
        "--directory", type=Path, help="keep the logs and data here (default: gone after the run)"
    )
    args = parser.parse_args()
    clean = True
    for seed in args.seeds:
        with tempfile.TemporaryDirectory(prefix="triptych-chaos-") as temporary:
            directory = Path(temporary)
            if args.directory is not None:
                directory = args.directory / f"seed-{seed}"
                directory.mkdir(parents=True)
            report = run(seed, args.seconds, directory)
            print(f"seed {seed}: {report}", flush=True)
            clean = clean and report.clean
            if not report.clean and args.directory is None:
                print((directory / "log").read_text(errors="replace")[-20_000:], file=sys.stderr)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
