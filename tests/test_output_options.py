"""What decoders and orchestrators say of output options that do not fit, before they start."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from orchestrator import output_options
from services import options
from services.role import Role


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with options for drivers that are secret, and some that are not."""
    for name, mode in (("secret.json", 0o600), ("open.json", 0o644)):
        (tmp_path / name).write_text(json.dumps({"key": "k", "secret": "s"}))
        (tmp_path / name).chmod(mode)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decoder(*words: str) -> options.RoleOptions:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, Role.DECODER)
    args = parser.parse_args(["--model", "emulated:", "--url", "grpc://127.0.0.1:30199", *words])
    return options.RoleOptions.from_arguments(Role.DECODER, args)


def orchestrator(*words: str) -> output_options.OutputOptions:
    parser = argparse.ArgumentParser()
    output_options.add_arguments(parser)
    return output_options.load(parser.parse_args(words), Path("/data"))


BOTH = [
    (["--output", "gs://bucket/x"], "gs://bucket/x: its driver is not installed: .*gcsfs"),
    (["--output", "S3://bucket"], "'S3://bucket' is not the URL of a store"),
    (["--output", "file://host/x"], "file://host/x: expected file:///PATH"),
    (["--output", "s3://bucket/x", "--output-options", "open.json"], "mode 0644 is open to others"),
    (["--output", "s3://bucket/x", "--output-options", "none.json"], "none.json"),
]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *BOTH,
        (["--output-options", "secret.json"], "--output-options: --output .* is a folder of this host"),
        (["--output", "s3://b/x", "--return", "bytes"], "--return bytes: files that are in s3://b/x"),
        (["--uploads", "-1"], "--uploads: -1, expected 0 or more"),
        (["--upload-timeout", "0"], "--upload-timeout: 0, expected more than 0 seconds"),
    ],
)
def test_a_decoder_refuses(folder: Path, words: list[str], why: str) -> None:
    with pytest.raises((OSError, ValueError), match=why):
        decoder(*words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *BOTH,
        (["--output-options", "secret.json"], "--output-options: there is no store in --output"),
        (["--content-redirect"], "--content-redirect: there is no store in --output"),
        (["--output", "s3://b/x", "--content-redirect", "0"], "--content-redirect: 0, expected 1 to 604800"),
        (["--orphan-age", "-1"], "--orphan-age: -1, expected 0 or more"),
        (["--output", "a", "--output", "file:///b"], "--output: a and /b, expected one folder of this host"),
    ],
)
def test_an_orchestrator_refuses(folder: Path, words: list[str], why: str) -> None:
    with pytest.raises((OSError, ValueError), match=why):
        orchestrator(*words)


def test_what_a_decoder_takes(folder: Path) -> None:
    here = decoder("--output", "videos", "--uploads", "3")
    assert here.output is not None and here.output.remote is None
    assert (here.output.directory, here.capacity) == (Path("videos"), 2)
    there = decoder("--output", "s3://bucket/x", "--spool-dir", "spool", "--output-options", "secret.json")
    assert there.output is not None and there.output.remote is not None
    assert (there.output.directory, there.capacity) == (Path("spool"), 3), "a place for a file on its way"
    assert there.output.remote.url == "s3://bucket/x"


def test_what_an_orchestrator_takes(folder: Path) -> None:
    assert orchestrator().folder == Path("/data/videos")
    several = orchestrator(
        "--output", "s3://new/x", "--output", "s3://old/x", "--output", "file:///srv/videos"
    )
    assert several.folder == Path("/srv/videos")
    assert [remote.url for remote in several.remote] == ["s3://new/x", "s3://old/x"]
    assert (several.redirect_seconds, several.orphan_seconds) == (None, 86400.0)
    linking = orchestrator("--output", "s3://b/x", "--content-redirect", "--orphan-age", "0")
    assert (linking.redirect_seconds, linking.orphan_seconds) == (3600.0, None)
