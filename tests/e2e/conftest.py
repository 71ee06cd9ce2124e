"""The whole system as separate processes, with the tiny Wan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.onebox import OneBox

START_SECONDS = 240.0
# One compute thread: three roles share the machine, and results depend on the count in the last bit.
ROLE_ARGUMENTS = ("--threads", "1", "--dtype", "float32", "--device", "cpu")


def running(model: Path, directory: Path, *role_arguments: str) -> Iterator[OneBox]:
    log = (directory / "log").open("wb")
    box = OneBox(
        str(model), data_dir=directory / "data", role_arguments=(*ROLE_ARGUMENTS, *role_arguments), log=log
    )
    try:
        with box:
            box.wait_ready(START_SECONDS)
            yield box
    finally:
        log.close()
        print((directory / "log").read_text())


@pytest.fixture(scope="session")
def box(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    yield from running(tiny_model, tmp_path_factory.mktemp("box"))


@pytest.fixture(scope="module")
def zmq_box(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneBox]:
    yield from running(tiny_model, tmp_path_factory.mktemp("zmq-box"), "--transfer", "zmq")
