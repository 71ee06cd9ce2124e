"""One of two denoisers is killed under load: what fails, what is wrong, and who waits how much longer."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.requests.connection import Connection
from benchmarks.requests.latency import TINY
from benchmarks.requests.row import Effort, Round, middle
from benchmarks.requests.system import START_SECONDS, running
from deploy.onebox import OneBox, Process

MODEL = "emulated:encode=0.05,denoise=0.4,decode=0.1,embeddings=4000000,latents=42000000"
EVERY = 0.5  # seconds between two requests: less than the denoiser that is left can do
POLL_SECONDS = 0.05


def measure(effort: Effort) -> Iterator[Round]:
    """The same requests twice, undisturbed and with the kill; the value is how many failed or were wrong."""
    requests = effort.count(24, 6)
    with running(MODEL, {"denoiser": 2}) as box, Connection(box.port) as connection:
        load = Load(box, connection, requests)
        load.run(kill=False)
        for _ in range(effort.rounds):
            calm = load.run(kill=False)
            stormy = load.run(kill=True)
            failed = [one["id"] for one in stormy if one["status"] != "completed"]
            wrong = [
                ours["id"]
                for ours, theirs in zip(stormy, calm, strict=True)
                if ours["status"] == "completed" and ours["frames_xxh3"] != theirs["frames_xxh3"]
            ]
            seconds, before = ([one["seconds"] for one in run] for run in (stormy, calm))
            yield Round(
                len(failed) + len(wrong),
                {
                    "requests": requests,
                    "failed": failed,
                    "wrong": wrong,
                    "tasks_lost": sum(one["lost"] for one in stormy),
                    "seconds": seconds,
                    "seconds_undisturbed": before,
                    "slowest_late": max(seconds) - max(before),
                },
            )


class Load:
    """Requests at a steady pace, each with a seed of its own; equal seeds make equal frames."""

    def __init__(self, box: OneBox, connection: Connection, requests: int) -> None:
        self._box = box
        self._connection = connection
        self._requests = requests

    def run(self, kill: bool) -> list[dict[str, Any]]:
        """In the order of their seeds: the video, ``seconds`` it took, ``lost`` attempts.

        A denoiser that is killed, while it computes, at half-time, is back for the next run.
        """
        ids: list[str] = []
        killed = None
        started = time.monotonic()
        for seed in range(self._requests):
            time.sleep(max(started + seed * EVERY - time.monotonic(), 0.0))
            ids.append(self._connection.create({**TINY, "num_inference_steps": 4, "seed": seed}))
            if kill and seed == self._requests // 2:
                killed = self._kill_denoiser()
        videos = [self._connection.wait(job_id, POLL_SECONDS)[0] for job_id in ids]
        if killed is not None:
            self._box.start_role(*killed.name.split())
            self._wait_for_all()
        return [video | self._times(video["id"]) for video in videos]

    def _kill_denoiser(self) -> Process:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for peer in self._peers():
                if peer["role"] == "denoiser" and peer.get("running"):
                    name = f"denoiser {peer['url']}"
                    process = next(one for one in self._box.processes if one.name == name)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    self._box.processes.remove(process)
                    return process
        raise RuntimeError("no denoiser was given anything to do")

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while any(peer["state"] != "ready" for peer in self._peers()):
            if time.monotonic() > deadline:
                raise RuntimeError("the killed denoiser did not come back")
            time.sleep(0.1)

    def _peers(self) -> list[dict[str, Any]]:
        peers: list[dict[str, Any]] = self._connection.call("GET", "/peers")["data"]
        return peers

    def _times(self, job_id: str) -> dict[str, Any]:
        timeline = self._connection.timeline(job_id)
        lost = sum(attempt["outcome"] == "lost" for attempt in timeline["attempts"])
        return {"seconds": timeline["completed_at"] - timeline["created_at"], "lost": lost}


def summary(rounds: list[Round]) -> str:
    requests = sum(one.raw["requests"] for one in rounds)
    failed, wrong = (sum(len(one.raw[name]) for one in rounds) for name in ("failed", "wrong"))
    lost = sum(one.raw["tasks_lost"] for one in rounds)
    late = middle(rounds, "slowest_late")
    usual = statistics.median(max(one.raw["seconds_undisturbed"]) for one in rounds)
    return (
        f"{len(rounds)} kills over {requests} requests: {failed} failed, {wrong} wrong, {lost} tasks were"
        f" lost and run again; the slowest request took {late:.2f} s more than the {usual:.2f} s of the"
        " slowest without a kill"
    )
