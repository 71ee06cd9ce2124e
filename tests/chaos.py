"""Chaos: steady load while processes are killed, frozen and restarted at random; nothing may be lost.

``python -m tests.chaos --seconds 60 --seed 1`` prints what it did and what it found.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from deploy.onebox import OneBox, Process
from orchestrator.client import ClientError, VideoClient

MODEL = "emulated:encode=0.05,denoise=0.3,decode=0.1,embeddings=1000000,latents=4000000"
COUNTS = {"encoder": 2, "denoiser": 3, "decoder": 2}
DRAIN = ("--drain-seconds", "20")
FAULTS = ("kill", "kill", "freeze", "terminate", "kill orchestrator")
SEEDS = range(6)
CLIENTS = 6
SETTLE_SECONDS = 10.0  # without faults, at the end
JOB_SECONDS = 120.0  # a job that takes longer counts as lost


@dataclass
class Report:
    """What was done, and what was found."""

    faults: list[str] = field(default_factory=list)
    completed: int = 0
    wrong: list[str] = field(default_factory=list)  # jobs whose frames are not those of their seed
    lost: list[str] = field(default_factory=list)  # accepted and failed, or never finished
    slots_in_use: dict[str, int] = field(default_factory=dict)  # at the end, by role and pool
    not_ready: list[str] = field(default_factory=list)  # at the end

    @property
    def clean(self) -> bool:
        used = any(self.slots_in_use.values())
        return bool(self.completed) and not (self.wrong or self.lost or used or self.not_ready)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in Counter(self.faults).items())
        return (
            f"faults: {faults or 'none'}\n{self.completed} completed, {len(self.wrong)} wrong, "
            f"{len(self.lost)} lost {self.lost}\nslots in use: {self.slots_in_use}, "
            f"not ready: {self.not_ready or 'none'}\n{'nothing found' if self.clean else 'FOUND FAULTS'}"
        )


class Chaos:
    """One run over a system that is up."""

    def __init__(self, box: OneBox, seed: int, seconds: float) -> None:
        self.report = Report()
        self._box = box
        self._chance = random.Random(seed)  # of the faults alone: a seed gives their order
        self._load_chance = random.Random(seed)
        self._end = time.monotonic() + seconds
        self._frames: dict[int, str] = {}  # by seed, from an undisturbed run

    async def run(self) -> Report:
        async with VideoClient(self._box.url) as client:
            for seed in SEEDS:
                self._frames[seed] = (await self._generate(client, seed))["frames_xxh3"]
            await asyncio.gather(self._disturb(), *(self._load(client) for _ in range(CLIENTS)))
        await self._look_around()
        return self.report

    async def _generate(self, client: VideoClient, seed: int) -> dict[str, str]:
        video = await client.create(prompt="chaos", seed=seed)
        try:
            return await client.wait(video["id"], timeout=JOB_SECONDS)
        except ClientError as error:
            return {"id": video["id"], "status": "lost", "error": str(error)}

    async def _load(self, client: VideoClient) -> None:
        while time.monotonic() < self._end:
            seed = self._load_chance.choice(SEEDS)
            try:
                video = await self._generate(client, seed)
            except ClientError:
                await asyncio.sleep(0.2)  # not accepted: the orchestrator is down
                continue
            if video["status"] != "completed":
                self.report.lost.append(f"{video['id']}: {video.get('error')}")
            elif video["frames_xxh3"] != self._frames[seed]:
                self.report.wrong.append(video["id"])
            else:
                self.report.completed += 1

    async def _disturb(self) -> None:
        while time.monotonic() < self._end - SETTLE_SECONDS:
            await asyncio.sleep(self._chance.uniform(0.5, 3.0))
            fault = self._chance.choice(FAULTS)
            wanted = fault == "kill orchestrator"
            choice = [p for p in self._box.processes if (p.name == "orchestrator") == wanted]
            victim = self._chance.choice(choice)
            self.report.faults.append(fault)
            print(f"{fault}: {victim.name}", flush=True)
            if fault == "freeze":
                victim.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self._chance.uniform(0.5, 7.0))
                victim.send_signal(signal.SIGCONT)
            else:
                await self._restart(victim, signal.SIGTERM if fault == "terminate" else signal.SIGKILL)

    async def _restart(self, victim: Process, number: signal.Signals) -> None:
        self._box.processes.remove(victim)
        victim.send_signal(number)
        await asyncio.to_thread(victim.wait, 60)
        if number is signal.SIGTERM and victim.returncode != 0:
            self.report.lost.append(f"{victim.name}: exit code {victim.returncode} after SIGTERM")
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        if victim.name == "orchestrator":
            self._box.start_orchestrator()
        else:
            self._box.start_role(*victim.name.split())

    async def _look_around(self) -> None:
        """Statistics come every few seconds: looks until all is well, or for as long as that may take."""
        deadline = time.monotonic() + 30.0
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self._box.url}/v1/peers") as reply:
                    entries = (await reply.json())["data"]
                used: Counter[str] = Counter()
                for entry in entries:
                    for pool in entry.get("pools", []):
                        used[f"{entry['role']} {pool['name']}"] += pool["slots_in_use"]
                self.report.slots_in_use = dict(used)
                self.report.not_ready = [e["url"] for e in entries if e["state"] != "ready"]
                if self.report.clean or time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.2)


def run(seed: int, seconds: float, directory: Path) -> Report:
    """Chaos for ``seconds`` over a system of its own, whose data and log go to ``directory``."""
    with (
        (directory / "log").open("wb") as log,
        OneBox(MODEL, counts=COUNTS, data_dir=directory / "data", role_arguments=DRAIN, log=log) as box,
    ):
        box.wait_ready(120)
        return asyncio.run(Chaos(box, seed, seconds).run())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triptych-chaos-") as directory:
        report = run(args.seed, args.seconds, Path(directory))
        print(report)
        if not report.clean:
            print((Path(directory) / "log").read_text()[-20_000:], file=sys.stderr)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
