"""Models that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.services.model.support import Roles, fused_pipeline, modular_pipeline


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Results depend on the count in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def roles(tiny_model: Path) -> Roles:
    return Roles(tiny_model)


@pytest.fixture(scope="package")
def fused(tiny_model: Path) -> Any:
    return fused_pipeline(tiny_model)


@pytest.fixture(scope="package")
def modular(tiny_model: Path) -> Any:
    return modular_pipeline(tiny_model)
