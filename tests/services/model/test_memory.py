"""Memory that runs out in the middle of a run: one clear line, and nothing of the run stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.model import open_model
from services.model.base import OutOfMemory
from services.role import Role
from tests.services.model.support import OPTIONS, Recorder, Roles, generation

SAID = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 80 GiB. See docs"
SMALL_BYTES = 4096  # what is less may stay: a scheduler's timesteps


class LimitedMemory(TorchDispatchMode):
    """A device, played by the CPU, on which the allocation after ``room`` of them fails. Real numbers alone
    count: a tokenizer's are on the CPU anyway.
    """

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.done = 0
        self._room = room
        self._made: list[tuple[int, weakref.ref[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            if self.done == self._room:
                raise torch.OutOfMemoryError(SAID)
            self.done += 1
            self._made.append((made.nbytes, weakref.ref(made)))
        return made

    def left(self) -> list[tuple[int, ...]]:
        """The shapes of the tensors that are still there."""
        alive = [tensor() for nbytes, tensor in self._made if nbytes >= SMALL_BYTES]
        return [tuple(tensor.shape) for tensor in alive if tensor is not None]


@pytest.fixture(scope="module")
def roles(tiny_model: Path) -> Roles:
    roles = Roles(tiny_model)
    # Else a text of a run that failed may stay, and is meant to.
    roles.encoder = open_model(Role.ENCODER, str(tiny_model), embedding_cache=0, **OPTIONS)
    return roles


@pytest.fixture
def no_collector() -> Iterator[None]:
    """It would hide what waits for it, on a device of whose memory it knows nothing."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def runs(roles: Roles) -> dict[Role, Callable[[], Any]]:
    request = generation()
    embeddings = roles.encoder.run(request, {}, Recorder())
    latents = roles.denoiser.run(request, embeddings, Recorder())
    return {
        Role.ENCODER: lambda: roles.encoder.run(request, {}, Recorder()),
        Role.DENOISER: lambda: roles.denoiser.run(request, embeddings, Recorder()),
        Role.DECODER: lambda: roles.decoded(request, latents),
    }


@pytest.mark.parametrize("role", list(Role))
def test_nothing_of_the_run_stays_wherever_it_ended(roles: Roles, no_collector: None, role: Role) -> None:
    run = runs(roles)[role]
    with LimitedMemory() as whole:
        run()
    for room in range(0, whole.done, whole.done // 20):
        with LimitedMemory(room) as memory, pytest.raises(OutOfMemory) as caught:
            run()
        assert (
            str(caught.value) == "cpu has too little memory for this request; 20.00 MiB more were asked for"
        )
        del caught
        assert memory.left() == [], f"after {room} allocations"


def test_a_run_leaves_nothing_but_its_result(roles: Roles, no_collector: None) -> None:
    run = runs(roles)[Role.DENOISER]
    with LimitedMemory() as memory:
        latents = run()["latents"]
        shape = tuple(latents.shape)
    assert memory.left() == [shape]
    del latents
    assert memory.left() == []


def test_the_next_run_is_as_if_nothing_had_been(roles: Roles) -> None:
    request = generation()
    expected = roles.frames(request)
    for role, run in runs(roles).items():
        with LimitedMemory(100), pytest.raises(OutOfMemory):
            run()
        np.testing.assert_array_equal(roles.frames(request), expected, err_msg=role.value)
