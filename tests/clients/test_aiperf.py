"""Every command line of AIPerf's tutorial for video generation, and what its users do beside it.

``make clients-long`` runs them; the one that ``make test`` runs is in test_page.py. Only the tokenizer is
another: a stand-in, since the tutorial's is downloaded. What a run says counts, not its exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.clients.environments import AIPERF, need
from tests.clients.servers import Servers
from tests.clients.tokenizer import seed_cache

pytestmark = pytest.mark.long

PROMPTS = (
    "A serene lake at sunset with mountains in the background",
    "A cat playing with a ball of yarn in a cozy living room",
    "A futuristic city with flying cars and neon lights",
)
FILE = "--input-file video_prompts.jsonl --custom-dataset-type single_turn"
LARGE = "--extra-inputs size:1280x720 --extra-inputs seconds:4"
LONG = "--extra-inputs size:1280x720 --extra-inputs seconds:8"
FIVE = "--synthetic-input-tokens-mean 50 --concurrency 1 --request-count 5"


@dataclass(frozen=True)
class Case:
    name: str
    options: str
    requests: int
    environment: dict[str, str] = field(default_factory=dict)


TUTORIAL = (
    Case("prompts of a file", f"{FILE} {LARGE} --concurrency 1 --request-count 3", 3),
    Case("synthetic prompts", f"{LARGE} --synthetic-input-tokens-stddev 10 {FIVE}", 5),
    Case("download", f"{FILE} {LARGE} --download-video-content --concurrency 1 --request-count 3", 3),
    Case(
        "advanced parameters",
        f"{FILE} {LONG} --extra-inputs seed:42 --extra-inputs guidance_scale:7.5"
        " --extra-inputs num_inference_steps:50 --concurrency 1 --request-count 3",
        3,
    ),
    Case(
        "slow polls",
        f"{FILE} {LARGE} --request-timeout-seconds 1200 --concurrency 1 --request-count 3",
        3,
        {"AIPERF_HTTP_VIDEO_POLL_INTERVAL": "0.5"},
    ),
    Case("raw export", f"{FILE} {LARGE} --concurrency 1 --request-count 3 --export-level raw", 3),
    Case(
        "throughput",
        "--extra-inputs size:720x480 --extra-inputs seconds:4 --synthetic-input-tokens-mean 30"
        " --concurrency 4 --request-count 20",
        20,
    ),
    Case("latency of 4 seconds", f"{LARGE} {FIVE}", 5),
    Case("latency of 8 seconds", f"{LONG} {FIVE}", 5),
    Case("fewer steps", f"{LARGE} --extra-inputs num_inference_steps:20 {FIVE}", 5),
    Case("more steps", f"{LARGE} --extra-inputs num_inference_steps:100 {FIVE}", 5),
)
BESIDE = (
    Case(
        "four times twenty, with fast polls",
        "--extra-inputs size:480x480 --extra-inputs seconds:1 --synthetic-input-tokens-mean 30"
        " --concurrency 4 --request-count 80 --download-video-content",
        80,
        {"AIPERF_HTTP_VIDEO_POLL_INTERVAL": "0.02"},
    ),
    Case(
        "waiting for the model",
        f"{FILE} --wait-for-model-timeout 60 --wait-for-model-mode models --concurrency 1 --request-count 1",
        1,
    ),
)


@dataclass(frozen=True)
class Run:
    """What AIPerf says of one."""

    code: int
    output: str
    report: dict[str, Any]  # empty if no request has succeeded: then it writes none
    records: list[dict[str, Any]]  # one for each request
    replies: list[dict[str, Any]]  # of a raw export, one for each request

    def count(self, name: str) -> int:
        return int(self.report[name]["avg"]) if self.report.get(name) else 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return seed_cache(tmp_path_factory.mktemp("cache"), "gpt2")


def profile(url: str, model: str, directory: Path, environment: dict[str, str], *options: str) -> Run:
    lines = [json.dumps({"text": prompt}) for prompt in PROMPTS]
    (directory / "video_prompts.jsonl").write_text("\n".join(lines))
    address = url.replace("127.0.0.1", "localhost")  # as the tutorial has it
    words = ["--model", model, "--tokenizer", "gpt2", "--url", address, "--endpoint-type", "video_generation"]
    result = subprocess.run(
        [need(AIPERF), "profile", *words, *options],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (artifacts,) = (path.parent for path in directory.glob("artifacts/*/profile_export.jsonl"))
    report = artifacts / "profile_export_aiperf.json"
    return Run(
        result.returncode,
        result.stdout + result.stderr,
        json.loads(report.read_text()) if report.exists() else {},
        lines_of(artifacts / "profile_export.jsonl"),
        lines_of(artifacts / "profile_export_raw.jsonl"),
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("case", [*TUTORIAL, *BESIDE], ids=lambda case: case.name)
def test_runs_clean(system: Servers, tmp_path: Path, cache: dict[str, str], case: Case) -> None:
    environment = {**cache, **case.environment}
    run = profile(system.url, system.model, tmp_path, environment, *case.options.split())
    assert run.code == 0, run.output
    assert run.report["error_summary"] == [], run.output
    assert (run.count("request_count"), run.count("error_request_count")) == (case.requests, 0)
    assert run.report["video_inference_time"]["count"] == case.requests
    if "raw" in case.options.split():
        urls = [url for reply in run.replies for url in completed_urls(reply)]
        assert len(set(urls)) == case.requests
        for url in urls:
            with urlopen(url, timeout=60) as reply:
                assert b"ftyp" in reply.read()[:16]


def completed_urls(reply: dict[str, Any]) -> list[str]:
    videos = [json.loads(response["text"]) for response in reply["responses"]]
    return [video["url"] for video in videos if video["status"] == "completed"]


def test_every_field_and_open_loop_load(system: Servers, tmp_path: Path, cache: dict[str, str]) -> None:
    fields = {
        "size": "96x64",
        "seed": 42,
        "guidance_scale": 7.5,
        "num_inference_steps": 20,
        "negative_prompt": "blurry, low quality",
        "fps": 12,
        "num_frames": 49,
    }
    words = ["--extra-inputs", json.dumps(fields), "--request-rate", "4", "--arrival-pattern", "poisson"]
    words += ["--request-count", "20", "--export-level", "raw", *FILE.split()]
    run = profile(system.url, system.model, tmp_path, cache, *words)
    assert run.code == 0 and run.report["error_summary"] == [], run.output
    assert run.count("request_count") == len(run.replies) == 20
    for reply in run.replies:
        video = json.loads(reply["responses"][-1]["text"])
        assert {name: video[name] for name in ("size", "seed", "fps", "num_frames")} == {
            name: fields[name] for name in ("size", "seed", "fps", "num_frames")
        }


def test_with_an_api_key(system: Servers, tmp_path: Path, cache: dict[str, str]) -> None:
    """The raw replies' links are good without the key."""
    words = ["--api-key", system.api_key, "--download-video-content", "--export-level", "raw"]
    words += ["--concurrency", "2", "--request-count", "4", *FILE.split()]
    run = profile(system.keyed_url, system.model, tmp_path, cache, *words)
    assert run.code == 0 and run.report["error_summary"] == [], run.output
    assert run.count("request_count") == 4
    for url in [url for reply in run.replies for url in completed_urls(reply)]:
        with urlopen(url, timeout=60) as reply:
            assert reply.status == 200


def test_failures_are_told_for_what_they_are(system: Servers, tmp_path: Path, cache: dict[str, str]) -> None:
    """Two wait and miss their deadline; those that come meanwhile find the queue full."""
    words = ["--extra-inputs", "timeout:1", "--concurrency", "4", "--request-count", "8", *FILE.split()]
    run = profile(system.stalled_url, system.model, tmp_path, cache, *words)
    assert run.code == 1 and len(run.records) == 8, run.output
    told = {(record["error"]["code"], kind_of(record["error"]["message"])) for record in run.records}
    assert told == {(500, "not finished within"), (429, "queue_full")}, run.output


def kind_of(message: str) -> str:
    return next((kind for kind in ("not finished within", "queue_full") if kind in message), message)


def test_a_nested_value_is_refused_by_name(system: Servers, tmp_path: Path, cache: dict[str, str]) -> None:
    words = ["--extra-inputs", '{"extra_params": {"fps": 8}}', "--concurrency", "1", "--request-count", "1"]
    run = profile(system.url, system.model, tmp_path, cache, *words, *FILE.split())
    assert run.code == 1 and len(run.records) == 1, run.output
    error = run.records[0]["error"]
    assert error["code"] == 400 and json.loads(error["message"])["error"]["param"] == "extra_params"
