"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan folder with random weights."""
    from deploy import tiny_model

    return tiny_model.build(tmp_path_factory.mktemp("model") / "tiny-wan")
