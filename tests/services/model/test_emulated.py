"""The emulated model's options."""

from __future__ import annotations

import pytest

from services.model.base import ModelError
from services.model.emulated import Emulation


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
