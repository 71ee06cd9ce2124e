"""Holds replies of the HTTP API against its description, wherever a test serves it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.orchestrator.http.conformance import Conformance


@pytest.fixture
def conformance() -> Iterator[Conformance]:
    """Fails the test for a reply that is not as the document says."""
    conformance = Conformance()
    yield conformance
    assert conformance.problems == []
