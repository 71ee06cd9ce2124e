"""curl, as people type it at a shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import need_command
from tests.clients.servers import Servers

FIELDS = {
    "prompt": "a red circle, “quickly”",
    "size": "96x64",
    "seconds": "1",
    "seed": "7",
    "guidance_scale": "2.5",
}
SAME = {"prompt": FIELDS["prompt"], "size": "96x64", "seconds": "1.125", "seed": 7, "num_frames": 9}


def curl(*words: str | Path) -> tuple[int, bytes]:
    """Status and body of the reply."""
    command = [need_command("curl"), "-sS", "--max-time", "60", "-w", "%{stderr}%{http_code}", *words]
    result = subprocess.run(command, capture_output=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return int(result.stderr), result.stdout


def ask(*words: str | Path) -> tuple[int, Any]:
    status, body = curl(*words)
    return status, json.loads(body)


def options(option: str) -> list[str]:
    return [word for name, value in FIELDS.items() for word in (option, f"{name}={value}")]


@pytest.mark.parametrize(
    "words",
    [
        ["-H", "Content-Type: application/json", "-d", json.dumps(FIELDS)],
        [
            "--json",
            json.dumps({**FIELDS, "seconds": 1, "seed": 7, "guidance_scale": 2.5}, ensure_ascii=False),
        ],
        options("-F"),
        options("--data-urlencode"),
        ["-H", "Transfer-Encoding: chunked", *options("-F")],
        ["-H", "Expect: 100-continue", *options("-F")],
    ],
    ids=["json", "--json", "form", "urlencoded", "chunked", "expect"],
)
def test_every_body_means_the_same(system: Servers, words: list[str]) -> None:
    status, video = ask(*words, f"{system.url}/v1/videos")
    assert status == 200, video
    assert {name: video[name] for name in SAME} == SAME


def test_from_request_to_file(system: Servers, tmp_path: Path) -> None:
    url, path = f"{system.url}/v1/videos", tmp_path / "video.mp4"
    _, video = ask(url, "-F", "prompt=a red circle")
    _, events = curl("-N", f"{url}/{video['id']}/events")
    assert b"event: completed" in events
    status, video = ask(f"{url}/{video['id']}")
    assert (status, video["status"]) == (200, "completed")
    assert curl("-L", video["url"], "-o", path)[0] == 200
    assert b"ftyp" in path.read_bytes()[:16]
    status, rest = curl("-r", "100-", video["url"])
    assert (status, rest) == (206, path.read_bytes()[100:])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:50])
    assert curl("-C", "-", video["url"], "-o", cut)[0] == 206 and cut.read_bytes() == path.read_bytes()
    assert curl("-OJ", "--output-dir", tmp_path, video["url"])[0] == 200
    assert (tmp_path / f"{video['id']}.mp4").read_bytes() == path.read_bytes()
    assert ask("-X", "DELETE", f"{url}/{video['id']}")[1]["deleted"] is True
    assert ask(f"{url}/{video['id']}")[0] == 404


def test_waiting_for_the_file(system: Servers, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    status, _ = curl(f"{system.url}/v1/videos/sync", "-F", "prompt=a red circle", "-o", path)
    assert status == 200 and b"ftyp" in path.read_bytes()[:16]


def test_errors_are_json(system: Servers, tmp_path: Path) -> None:
    picture, large, url = tmp_path / "first.png", tmp_path / "large.txt", f"{system.url}/v1/videos"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(4))
    large.write_bytes(b"a" * (33 << 20))
    for words, status, code in (
        ([url, "-F", "prompt=a", "-F", f"input_reference=@{picture}"], 400, "unsupported_field"),
        ([url, "-F", "prompt=a", "-F", "colour=red"], 400, "unknown_field"),
        ([url, "-d", '{"prompt": "a"}'], 415, "content_type"),
        ([f"{url}/none"], 404, "video_not_found"),
        ([f"{system.url}/v1/nothing"], 404, "not_found"),
        (["-X", "PUT", url], 405, "method_not_allowed"),
        ([url, "-F", f"prompt=<{large}"], 413, "body_too_large"),
        ([f"{system.keyed_url}/v1/models"], 401, "invalid_api_key"),
    ):
        found, reply = ask(*words)
        assert (found, reply["error"]["code"]) == (status, code), words


def test_with_an_api_key(system: Servers, tmp_path: Path) -> None:
    url, key = f"{system.keyed_url}/v1/videos", f"Authorization: Bearer {system.api_key}"
    path = tmp_path / "video.mp4"
    assert curl("-H", key, f"{url}/sync", "-F", "prompt=a red circle", "-o", path)[0] == 200
    _, page = ask("-H", key, url)
    status, shared = curl(page["data"][0]["url"])  # shows no key
    assert status == 200 and shared == path.read_bytes()
