"""Reference images at the door of a role, and as the emulated model sees them."""

from __future__ import annotations

import pytest

from services.model.base import InvalidRequest, Limits, ModelError
from services.model.emulated import EmulatedModel
from services.role import Role
from services.stage import TensorStage
from services.validation import MAX_IMAGE_BYTES, problem
from tests.load import Unwatched
from tests.reference_images import BLUE, RED, encoded, picture, png
from triptych_proto.control_pb2 import Generation, Image, Run

REQUEST = Generation(prompt="p", width=32, height=32, num_frames=9, fps=8, num_inference_steps=2)


def run(*images: bytes) -> Run:
    return Run(task_id="t", job_id="j", generation=REQUEST, images=[Image(data=data) for data in images])


def test_as_many_as_the_model_takes() -> None:
    assert problem(run()) == problem(run(b"a"), 1) == problem(run(b"a", b"b"), 2) == ""
    assert problem(run(b"a")) == "Run.images has 1 entries, expected 0 at most"
    assert problem(run(*[b""] * 10_000), 16) == "Run.images has 10000 entries, expected 16 at most"


def test_their_bytes() -> None:
    assert problem(run(bytes(MAX_IMAGE_BYTES // 2), bytes(MAX_IMAGE_BYTES // 2)), 2) == ""
    assert "bytes, expected" in problem(run(bytes(MAX_IMAGE_BYTES), b"x"), 2)


def embeddings(stage: TensorStage, *images: bytes) -> object:
    values = stage.run(run(*images), {}, Unwatched()).values
    assert values is not None
    return bytes(values["embeddings"].numpy().data)  # type: ignore[union-attr]


def test_what_is_encoded_depends_on_every_pixel_and_on_their_order() -> None:
    stage = TensorStage(EmulatedModel(Role.ENCODER, "emulated:images=0-2", Limits()))
    spot = picture(RED)
    spot.putpixel((7, 5), (254, 0, 0))
    requests = [(), (png(RED),), (png(BLUE),), (encoded(spot),), (png(RED), png(BLUE)), (png(BLUE), png(RED))]
    assert len({embeddings(stage, *images) for images in requests}) == len(requests)
    lossless = encoded(picture(RED), "WEBP", lossless=True)
    assert embeddings(stage, png(RED)) == embeddings(stage, lossless)


def test_it_says_how_many() -> None:
    for spelled, least, most in (("3", 3, 3), ("1-2", 1, 2), ("0-0", 0, 0)):
        facts = EmulatedModel(Role.DENOISER, f"emulated:images={spelled}", Limits()).facts
        assert (facts.min_images, facts.max_images) == (least, most)
    stage = TensorStage(EmulatedModel(Role.ENCODER, "emulated:images=1", Limits()))
    with pytest.raises(InvalidRequest, match=r"input_reference: 0 reference images, expected 1$"):
        embeddings(stage)
    for spelled in ("2-1", "-1", "x", "", "1-x"):
        with pytest.raises(ModelError, match="images N or MIN-MAX"):
            EmulatedModel(Role.ENCODER, f"emulated:images={spelled}", Limits())


def test_the_encoder_s_limit() -> None:
    stage = TensorStage(EmulatedModel(Role.ENCODER, "emulated:images=1", Limits()), 47)
    with pytest.raises(InvalidRequest, match="reference image 1 has 8x6 pixels, expected at most 47"):
        embeddings(stage, png())
