"""The servers that all clients use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients import servers
from tests.clients.servers import Servers


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    given = Servers.given()
    if given is not None:
        yield given
        return
    with servers.running(tmp_path_factory.mktemp("clients")) as started:
        yield started
