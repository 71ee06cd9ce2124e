"""A run on a GPU: when it is over, how it is stopped, and what is left when its memory does not suffice."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.media import encoders
from services.media.encoders import X264, NoEncoder, choose, nvenc
from services.model import ModelError, open_model
from services.model.base import Cancelled, OutOfMemory
from services.role import Role
from tests.gpu.support import DEVICE, Roles, build, crossed, sleep
from tests.services.model.support import Recorder, generation

LARGE = {"width": 1280, "height": 704, "num_frames": 17}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wan", tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def roles(folder: Path) -> Roles:
    return Roles.of(folder, "bfloat16")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may take 64 MiB more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(DEVICE) + (64 << 20)) / total, DEVICE
    )
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


@dataclass
class Watching(Recorder):
    """Notes whether the device had anything left to do when a step was said to be done."""

    settled: tuple[bool, ...] = ()

    def progress(self, step: int, total: int) -> None:
        super().progress(step, total)
        self.settled += (torch.cuda.current_stream(DEVICE).query(),)


def components(model: Any) -> Iterator[torch.nn.Module]:
    return (part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module))


def allocated() -> Counter[int]:
    """How many blocks of which size are in use, those of libraries included: theirs are taken at their first
    use, and kept.
    """
    blocks = (block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"])
    return Counter(block["size"] for block in blocks if block["state"] == "active_allocated")


def test_weights_lie_on_the_device(roles: Roles) -> None:
    for model in (roles.encoder, roles.denoiser, roles.decoder):
        assert model.device == torch.device(DEVICE)
        for module in components(model):
            assert {p.device for p in (*module.parameters(), *module.buffers())} == {torch.device(DEVICE)}


def test_bfloat16_is_the_default_and_the_vae_stays_in_float32(folder: Path) -> None:
    for role, dtype in zip(Role, (torch.bfloat16, torch.bfloat16, torch.float32), strict=True):
        (module,) = components(open_model(role, str(folder)))
        floating = [p for p in module.parameters() if p.is_floating_point()]
        assert max(floating, key=torch.numel).dtype == dtype


@pytest.mark.parametrize("device", ["cuda:99", "cuda:x"])
def test_a_device_that_is_not_there_is_named(folder: Path, device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' is not available: "):
        open_model(Role.DECODER, str(folder), device=device)


def test_steps_and_runs_are_over_when_they_say_so(roles: Roles) -> None:
    request = generation(num_inference_steps=2)
    embeddings = crossed(roles.encoder.run(request, {}, Recorder()))
    (transformer,) = components(roles.denoiser)
    slow = transformer.register_forward_hook(lambda *_: sleep(0.2))
    watching = Watching()
    try:
        latents = roles.denoiser.run(request, embeddings, watching)
        assert torch.cuda.current_stream(DEVICE).query()
    finally:
        slow.remove()
    assert watching.settled == (True, True)
    assert latents["latents"].device == torch.device(DEVICE)  # type: ignore[union-attr]


def test_a_text_that_is_remembered_is_the_same(roles: Roles) -> None:
    request = generation(prompt="a text of this test's own")
    first = crossed(roles.encoder.run(request, {}, Recorder()))
    before = roles.encoder.cache_stats()
    again = crossed(roles.encoder.run(request, {}, Recorder()))
    after = roles.encoder.cache_stats()
    assert before and after and after.hits == before.hits + 2
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_cancelled_denoising_leaves_no_trace(roles: Roles, steps: int) -> None:
    request = generation(num_inference_steps=4)
    embeddings = crossed(roles.encoder.run(request, {}, Recorder()))
    clean = crossed(roles.denoiser.run(request, embeddings, Recorder()))
    held = torch.cuda.memory_allocated(DEVICE)
    recorder = Recorder(cancel_after=steps)
    with pytest.raises(Cancelled):
        roles.denoiser.run(request, embeddings, recorder)
    assert len(recorder.steps) == steps
    torch.testing.assert_close(crossed(roles.denoiser.run(request, embeddings, Recorder())), clean)
    assert torch.cuda.memory_allocated(DEVICE) == held


def test_too_little_memory_is_said_and_given_back(roles: Roles, little_memory: None) -> None:
    small, large = generation(), generation(**LARGE)
    clean, _ = roles.run(small)
    latents = {"latents": torch.zeros(1, 16, 5, 88, 160)}
    held = allocated()
    expected = f"^{DEVICE} has too little memory for this request; .+ were asked for: of .+ GiB"
    gc.disable()  # what waits for the collector is not given back
    try:
        with pytest.raises(OutOfMemory, match=expected):
            list(roles.decoder.decode(large, latents, Recorder()).frames)
        assert allocated() == held
    finally:
        gc.enable()
    np.testing.assert_array_equal(roles.run(small)[0], clean)


def test_nvenc_is_taken_where_it_encodes_and_missed_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, encoders.__name__):
        if reason := encoders.problem(nvenc(DEVICE)):
            assert choose("auto", DEVICE) is X264
            assert f"x264 (NVENC does not encode here: {reason})" in caplog.text
            with pytest.raises(NoEncoder, match="NVENC does not encode here: "):
                choose("nvenc", DEVICE)
        else:
            assert choose("auto", DEVICE).codec == choose("nvenc", DEVICE).codec == "h264_nvenc"
