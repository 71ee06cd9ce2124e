"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import postgres

if TYPE_CHECKING:
    from tests.s3 import S3Server

# A shell's background job ignores Ctrl-C, and so would every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan folder with random weights."""
    from deploy import tiny_model

    return tiny_model.build(tmp_path_factory.mktemp("model") / "tiny-wan")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """Where the server is not installed its tests are skipped, but not in CI."""
    binaries = postgres.binaries()
    if binaries is None:
        missing = "needs a PostgreSQL server (Debian's package postgresql)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    server = postgres.PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer) -> str:
    """The URL of an empty database of the test's own."""
    return postgres_server.create_database()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    from tests import s3  # here: the environments of other clients have no driver for S3

    with s3.S3Server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh job store, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/jobs.sqlite"
    url: str = request.getfixturevalue("postgres_url")
    return url
