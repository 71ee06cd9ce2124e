"""`python -m benchmarks.floor.server`: HTTP, the job rows, and a stream to each stage."""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from benchmarks.floor.jobs import Jobs
from benchmarks.floor.message import first_payload
from benchmarks.floor.polled import Polled
from benchmarks.floor.stream import Stream


class Server:
    """SQLite is called on the event loop: a commit takes less than the way to a thread and back."""

    def __init__(self, data: Path, ports: Sequence[int]) -> None:
        self._videos = data / "videos"
        self._jobs = Jobs(data / "jobs.sqlite")
        self._streams = [Stream(port) for port in ports]

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        prompt = json.loads(body)["prompt"]
        job = self.accept(body)
        await self.make(job, prompt)
        return self.file(job)

    async def only_http(self, request: web.Request) -> web.StreamResponse:
        """The same from a client's eyes: it answers with the video that the query names."""
        json.loads(await request.text())
        job = request.query["job"]
        return self.file(job)

    def accept(self, body: str) -> str:
        """The id of a new job."""
        job = uuid.uuid4().hex
        self._jobs.add(job, body)
        return job

    async def make(self, job: str, prompt: str) -> None:
        """ConnectionError when a stage is gone."""
        payload = first_payload(prompt)
        for stream in self._streams:
            payload = await stream.work(job, payload)
        self._jobs.complete(job, self._path(job).name)

    def file(self, job: str) -> web.Response:
        """Its video. They are small: a thread, or aiohttp's reply with a file, would take longer."""
        return web.Response(
            body=self._path(job).read_bytes(), content_type="video/mp4", headers={"X-Video-Id": job}
        )

    def _path(self, job: str) -> Path:
        return self._videos / f"{job}.mp4"


async def run(data: Path, ports: Sequence[int]) -> None:
    """Prints the port, and serves until it is killed."""
    server = Server(data, ports)
    polled = Polled(server)
    app = web.Application()
    app.router.add_post("/v1/videos/sync", server.generate)
    app.router.add_post("/http", server.only_http)
    app.router.add_post("/v1/videos", polled.create)
    app.router.add_get("/v1/videos/{id}", polled.show)
    app.router.add_get("/v1/videos/{id}/content", polled.content)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor.server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stages", type=int, nargs="+", required=True, metavar="PORT", help="in order")
    args = parser.parse_args()
    asyncio.run(run(args.data, args.stages))


if __name__ == "__main__":
    main()
