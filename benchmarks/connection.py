"""One client on one connection, as small as can be: it shares two cores with what it measures."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

PAUSE_SECONDS = 0.001  # between the answer to a poll and the next poll
JOB_SECONDS = 300.0


@dataclass(frozen=True)
class Journey:
    """A request from its first byte to its end, in seconds, and the video as it then was."""

    total: float
    polls: int
    video: dict[str, Any]


class Connection:
    """Stays open, as those of SDKs do. RuntimeError for any answer but 200 and for a job that failed."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60.0)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def call(self, method: str, path: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        _, text = self._answer(method, path, fields)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _answer(
        self, method: str, path: str, fields: dict[str, Any] | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        body = None if fields is None else json.dumps(fields)
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request(method, f"/v1{path}", body, headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} was answered {response.status}: {text[:500]!r}")
        return response, text

    def create(self, fields: dict[str, Any]) -> str:
        """The id of a new job."""
        return str(self.call("POST", "/videos", fields)["id"])

    def sync(self, fields: dict[str, Any]) -> Journey:
        """A request to the last byte of its file, which is what it is answered with."""
        started = time.monotonic()
        response, _ = self._answer("POST", "/videos/sync", fields)
        total = time.monotonic() - started
        return Journey(total, 0, self.call("GET", f"/videos/{response.headers['X-Video-Id']}"))

    def generate(self, fields: dict[str, Any], pause: float = PAUSE_SECONDS) -> Journey:
        """A request to its end, as polls see it; ``pause`` lies between an answer and the next poll."""
        started = time.monotonic()
        video = self.call("POST", "/videos", fields)
        video, polls = self.wait(video["id"], pause)
        ended = time.monotonic()
        if video["status"] == "failed":
            raise RuntimeError(f"video {video['id']} failed: {video['error']}")
        return Journey(ended - started, polls, video)

    def wait(self, job_id: str, pause: float = PAUSE_SECONDS) -> tuple[dict[str, Any], int]:
        """The video when it is completed or failed, and the number of polls."""
        deadline = time.monotonic() + JOB_SECONDS
        polls = 0
        while time.monotonic() < deadline:
            time.sleep(pause)
            video = self.call("GET", f"/videos/{job_id}")
            polls += 1
            if video["status"] in ("completed", "failed"):
                return video, polls
        raise RuntimeError(f"video {job_id} was not finished within {JOB_SECONDS:g} s")

    def timeline(self, job_id: str) -> dict[str, Any]:
        return self.call("GET", f"/videos/{job_id}/timeline")
