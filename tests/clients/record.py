"""Records what the real clients send: ``python -m tests.clients.record [CLIENT ...]`` writes ``wire/*.http``.

A file is one request as it came over the socket. So that recording again changes nothing but what the client
changes, ``Host``, the boundary of a form and the length of the head are not the client's: headers that tell
nothing to a server are left out, and a boundary is replaced by a fixed one of its length.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.clients.environments import AIPERF, NODE, OPENAI_2
from tests.clients.tokenizer import seed_cache
from tests.orchestrator.http.service import MODEL

WIRE = Path(__file__).parent / "wire"
JOB = "video_0123456789abcdef0123456789abcdef"
KEPT = {
    "accept",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "idempotency-key",
    "transfer-encoding",
    "user-agent",
    "x-stainless-poll-helper",
}

# The same request from every client, as far as its interface goes.
PROMPT = "a cat, “grün”"
FIELDS = {
    "negative_prompt": "blurry, low quality",
    "guidance_scale": 7.5,
    "num_inference_steps": 6,
    "seed": 2**53 - 1,
    "priority": 1,
}
BODY = {"prompt": PROMPT, "model": MODEL.name, "size": "64x32", "seconds": "2", **FIELDS}
FPS = 8  # nested where the client can
KEY = {"Idempotency-Key": "recorded-key"}

PYTHON = {
    "create": f"videos.create(prompt={PROMPT!r}, model={MODEL.name!r}, size='64x32', seconds='2',"
    f" extra_body={ {**FIELDS, 'extra_params': {'fps': FPS}} }, extra_headers={KEY})",
    "create-prompt": "videos.create(prompt='a cat')",
    "create-file": "videos.create(prompt='a cat', input_reference=('a.png', png, 'image/png'))",
    "poll": f"videos.poll('{JOB}')",
    "list": f"videos.list(limit=2, order='asc', after='{JOB}')",
    "content": f"videos.download_content('{JOB}', variant='video')",
    "remix": f"videos.remix('{JOB}', prompt='a dog')",
    "delete": f"videos.delete('{JOB}')",
    "edit": "videos.edit(prompt='a dog', video=('a.mp4', mp4, 'video/mp4'))",
    "extend": "videos.extend(prompt='a dog', seconds='4', video=('a.mp4', mp4, 'video/mp4'))",
    "character": "videos.create_character(name='a cat', video=('a.mp4', mp4, 'video/mp4'))",
    "image": "images.generate(prompt='a cat', n=1, size='1024x1024')",
    "image-edit": "images.edit(prompt='a cat', image=[('a.png', png, 'image/png')] * 2)",
    "models": "models.list()",
}
NODE_JS = {
    "create": f"videos.create({json.dumps({**BODY, 'extra_params': {'fps': FPS}})}, {{headers: {KEY}}})",
    "create-prompt": "videos.create({prompt: 'a cat'})",
    "create-file": "videos.create({prompt: 'a cat', input_reference: png})",
    "create-url": "videos.create({prompt: 'a cat', input_reference: {image_url: 'https://a.example/a.png'}})",
    "poll": f"videos.retrieve('{JOB}')",
    "list": f"videos.list({{limit: 2, order: 'asc', after: '{JOB}'}})",
    "content": f"videos.downloadContent('{JOB}', {{variant: 'video'}})",
    "remix": f"videos.remix('{JOB}', {{prompt: 'a dog'}})",
    "delete": f"videos.delete('{JOB}')",
    "edit": "videos.edit({prompt: 'a dog', video: {id: 'video_1'}})",
    "extend": "videos.extend({prompt: 'a dog', seconds: '4', video: mp4})",
    "character": "videos.createCharacter({name: 'a cat', video: mp4})",
    "image": "images.generate({prompt: 'a cat', n: 1, size: '1024x1024'})",
    "image-edit": "images.edit({prompt: 'a cat', image: [png, png]})",
    "models": "models.list()",
}
_FORM = {**BODY, "extra_params[fps]": FPS}
CURL = {
    "json": ["-H", "Content-Type: application/json", "-d", json.dumps({**BODY, "fps": FPS})],
    "form": [word for name, value in _FORM.items() for word in ("-F", f"{name}={value}")],
    "nested-json": [
        *(word for name, value in BODY.items() for word in ("-F", f"{name}={value}")),
        *("-F", f'extra_params={{"fps": {FPS}}}'),
    ],
    "urlencoded": [word for name, value in _FORM.items() for word in ("--data-urlencode", f"{name}={value}")],
    "create-file": ["-F", "prompt=a cat", "-F", "input_reference=@a.png"],
}
AIPERF_FIELDS = {"size": "64x32", "seconds": 2, **FIELDS, "fps": FPS}
AIPERF_NESTED = {"extra_params": {"fps": FPS}}

PNG = b"\x89PNG\r\n\x1a\n\0\xff\r\n--\0"
MP4 = b"\0\0\0\x18ftypmp42\r\n--\0"
PYTHON_CLIENT = """
import sys, warnings
warnings.simplefilter("ignore")
import openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="recorded", max_retries=0)
png, mp4 = open("a.png", "rb").read(), open("a.mp4", "rb").read()
client.{call}
"""
NODE_CLIENT = """
import fs from "node:fs";
import OpenAI, {{ toFile }} from "openai";
const client = new OpenAI({{ baseURL: process.argv[2] + "/v1", apiKey: "recorded", maxRetries: 0 }});
const png = await toFile(fs.readFileSync("a.png"), "a.png", {{ type: "image/png" }});
const mp4 = await toFile(fs.readFileSync("a.mp4"), "a.mp4", {{ type: "video/mp4" }});
await client.{call};
"""


class Recorder(socketserver.ThreadingTCPServer):
    """Keeps every request, and answers so that the client goes on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: Recorder

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        if not head:
            return
        if length := re.search(rb"(?im)^content-length: *(\d+)", head):
            body = self.rfile.read(int(length[1]))
        elif re.search(rb"(?im)^transfer-encoding: *chunked", head):
            body = b"".join(self._chunks())
        else:
            body = b""
        self.server.requests.append(head + b"\r\n" + body)
        method, path = head.decode("latin-1").split(" ")[:2]
        kind, reply = answer(method, path.partition("?")[0])
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: " + kind.encode())
        self.wfile.write(
            b"\r\nContent-Length: %d\r\n\r\n" % len(reply) + (b"" if method == "HEAD" else reply)
        )

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = self.rfile.readline()
            yield size + self.rfile.read(int(size, 16) + 2)
            if int(size, 16) == 0:
                return


def answer(method: str, path: str) -> tuple[str, bytes]:
    """Content type and body of a reply with which every client is content."""
    if path.endswith("/content"):
        return "video/mp4", MP4
    if path == "/metrics":
        return "text/plain", b"# TYPE recorded_total counter\nrecorded_total 1\n"
    reply: dict[str, object] = {"id": JOB, "object": "video", "status": "queued", "progress": 0}
    if method == "GET" and path.startswith("/v1/videos/"):
        reply |= {"status": "completed", "progress": 100}
    if method == "GET" and path in ("/v1/videos", "/v1/models"):
        reply = {"object": "list", "data": [], "has_more": False}
    return "application/json", json.dumps(reply).encode()


@contextmanager
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def normalised(request: bytes) -> bytes:
    """The request without what differs from one recording to the next."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    kept = [header for header in headers if header.partition(b":")[0].decode().lower() in KEPT]
    head = b"\r\n".join([line, b"Host: recorded", *kept])
    if boundary := re.search(rb'boundary="?([^\r\n";]+)', head):
        fixed = (b"recorded-boundary-" * 8)[: len(boundary[1])]
        head, body = head.replace(boundary[1], fixed), body.replace(boundary[1], fixed)
    return head + b"\r\n\r\n" + body


def run(words: list[str | Path], directory: Path, environment: Mapping[str, str] | None = None) -> None:
    result = subprocess.run(
        words,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{words[0]} failed:\n{result.stdout}{result.stderr}")


Recordings = Iterator[tuple[str, bytes]]  # name of the call, request


def record_python(python: Path, directory: Path) -> Recordings:
    for name, call in PYTHON.items():
        with recorder() as server:
            run([python, "-c", PYTHON_CLIENT.format(call=call), server.url], directory)
        yield name, server.requests[0]


def record_node(directory: Path) -> Recordings:
    (directory / "node_modules").symlink_to(NODE / "node_modules")
    for name, call in NODE_JS.items():
        (directory / "call.mjs").write_text(NODE_CLIENT.format(call=call))
        with recorder() as server:
            run(["node", "call.mjs", server.url], directory)
        yield name, server.requests[0]


def record_curl(directory: Path) -> Recordings:
    for name, words in CURL.items():
        with recorder() as server:
            run(["curl", "-sS", *words, f"{server.url}/v1/videos"], directory)
        yield name, server.requests[0]


def record_aiperf(directory: Path) -> Recordings:
    environment = seed_cache(directory / "cache", "gpt2")
    (directory / "prompts.jsonl").write_text(json.dumps({"text": PROMPT}))
    words = ["profile", "--model", MODEL.name, "--tokenizer", "gpt2", "--endpoint-type", "video_generation"]
    words += ["--input-file", "prompts.jsonl", "--custom-dataset-type", "single_turn", "--request-count", "1"]
    words += ["--download-video-content", "--api-key", "recorded"]
    for nested in (False, True):
        fields = AIPERF_NESTED if nested else AIPERF_FIELDS
        with recorder() as server:
            url = ["--url", server.url, "--extra-inputs", json.dumps(fields)]
            run([AIPERF, *words, *url], directory, environment)
        first = {request.split(b" HTTP/", 1)[0].decode(): request for request in reversed(server.requests)}
        if nested:
            yield "nested", first["POST /v1/videos"]
            continue
        yield "create", first["POST /v1/videos"]
        yield "poll", first[f"GET /v1/videos/{JOB}"]
        yield "content", first[f"GET /v1/videos/{JOB}/content"]
        yield "metrics", first["HEAD /metrics"]


CLIENTS: dict[str, Callable[[Path], Recordings]] = {
    "python-3": lambda directory: record_python(Path(sys.executable), directory),
    "python-2": lambda directory: record_python(OPENAI_2, directory),
    "node": record_node,
    "curl": record_curl,
    "aiperf": record_aiperf,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)} (default: all)"
    )
    chosen = parser.parse_args().clients or list(CLIENTS)
    if unknown := set(chosen) - set(CLIENTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    for client in chosen:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "a.png").write_bytes(PNG)
            (directory / "a.mp4").write_bytes(MP4)
            for call, request in CLIENTS[client](directory):
                (WIRE / f"{client}-{call}.http").write_bytes(normalised(request))
                print(f"{client}-{call}")


if __name__ == "__main__":
    main()
