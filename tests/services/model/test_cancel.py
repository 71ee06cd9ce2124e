"""Progress, and runs that nobody wants any more."""

from __future__ import annotations

import numpy as np
import pytest

from services.model.base import Cancelled
from tests.services.model.support import Recorder, Roles, generation


def test_progress_after_each_step(roles: Roles) -> None:
    request = generation(num_inference_steps=4)
    recorder = Recorder()
    roles.denoiser.run(request, roles.encoder.run(request, {}, recorder), recorder)
    assert recorder.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("steps", [0, 2])
def test_a_cancelled_denoising_leaves_no_trace(
    roles: Roles, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    request = generation(num_inference_steps=4, guidance_scale=3.0)
    clean = roles.frames(request)
    embeddings = roles.encoder.run(request, {}, Recorder())
    recorder = Recorder(cancel_after=steps)
    with pytest.raises(Cancelled):
        roles.denoiser.run(request, embeddings, recorder)
    assert len(recorder.steps) == steps
    assert not caplog.records
    np.testing.assert_array_equal(roles.frames(request), clean)


def test_a_cancelled_decoding_leaves_no_trace(roles: Roles) -> None:
    request = generation(num_frames=9)
    latents = roles.latents(request)
    clean = roles.decoded(request, latents)
    recorder = Recorder()
    chunks = roles.decoder.decode(request, latents, recorder).frames
    next(chunks)
    recorder.cancel_after = 0
    with pytest.raises(Cancelled):
        next(chunks)
    abandoned = roles.decoder.decode(request, latents, Recorder()).frames
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(roles.decoded(request, latents), clean)
