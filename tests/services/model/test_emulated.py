"""The emulated model's options."""

from __future__ import annotations

import pytest

from services.model.base import DeviceLost, Limits, ModelError, OutOfMemory
from services.model.emulated import EmulatedModel, Emulation
from services.role import Role
from tests.services.model.support import Recorder
from triptych_proto.control_pb2 import Generation


def test_options_are_taken_from_the_models_name() -> None:
    assert Emulation.parse("emulated:") == Emulation()
    given = Emulation.parse("emulated:encode=0.5,latents=8388608,fatal=denoise,grain=1")
    assert given == Emulation(encode=0.5, latents=8388608, fatal="denoise", grain=1)


@pytest.mark.parametrize(
    "part", ["steps=3", "encode=fast", "latents=1.5", "latents", "fatal=1", "fatal=save"]
)
def test_what_is_no_option_is_named(part: str) -> None:
    with pytest.raises(ModelError, match=f"found '{part}'"):
        Emulation.parse(f"emulated:encode=1,{part}")


@pytest.mark.parametrize(("word", "error"), [("huge", OutOfMemory), ("lost", DeviceLost)])
def test_words_in_a_prompt_harm_the_stage_that_was_named(word: str, error: type[Exception]) -> None:
    request = Generation(prompt=f"a {word} prompt", width=64, height=64, num_frames=5, num_inference_steps=1)
    with pytest.raises(error, match="emulated: "):
        EmulatedModel(Role.ENCODER, "emulated:fatal=encode", Limits()).run(request, {}, Recorder())
    EmulatedModel(Role.ENCODER, "emulated:fatal=denoise", Limits()).run(request, {}, Recorder())
