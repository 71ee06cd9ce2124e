"""Requests of one shape share a denoising loop; each gets what it gets alone, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deploy.tiny.table import MODELS
from services.model import open_model
from services.model.base import Cancelled, InvalidRequest, Lane, RoleModel, Value
from services.model.families import FAMILIES
from services.role import Role
from tests.services.model.cases import CASES
from tests.services.model.support import OPTIONS, Recorder, generation
from triptych_proto.control_pb2 import Generation

TOLERANCE = 1e-5  # of the largest value: rounding grows with the scale of guidance
BATCHED = [family.name for family in FAMILIES if family.batches]
PROMPTS = ("a red circle moving right", "snow", "two grey birds over the old harbour at noon")


@dataclass
class Model:
    """A family's encoder and denoiser."""

    encoder: RoleModel
    denoiser: RoleModel

    def encode(self, request: Generation, picture: Image.Image | None = None) -> dict[str, Value]:
        return self.encoder.run(request, {}, Recorder(), [] if picture is None else [picture])

    def alone(self, request: Generation, inputs: Mapping[str, Value]) -> dict[str, Value]:
        return self.denoiser.run(request, inputs, Recorder())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    parent = tmp_path_factory.mktemp("batch")
    models = {}
    for family in BATCHED:
        folder = str(MODELS[family](parent / f"tiny-{family}", 0))
        models[family] = Model(
            *(open_model(role, folder, **OPTIONS) for role in (Role.ENCODER, Role.DENOISER))
        )
    return models


def requests_of(family: str, **changes: Any) -> list[Generation]:
    """Three that differ in all that a batch leaves to each."""
    base = {**CASES[family].base.fields, "num_inference_steps": 2, **changes}
    return [generation(**{**base, "prompt": prompt, "seed": 7 + i}) for i, prompt in enumerate(PROMPTS)]


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (75, 100, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def with_pictures(family: str) -> list[bool]:
    row = next(row for row in FAMILIES if row.name == family)
    return [wanted for wanted in (False, True) if row.images[0] <= wanted <= row.images[1]]


PARAMETERS = [(family, wanted) for family in BATCHED for wanted in with_pictures(family)]


@pytest.mark.parametrize(("family", "pictured"), PARAMETERS)
def test_a_batch_gives_what_each_gets_alone(opened: dict[str, Model], family: str, pictured: bool) -> None:
    model, requests = opened[family], requests_of(family)
    inputs = [model.encode(r, picture(i) if pictured else None) for i, r in enumerate(requests)]
    assert len({model.denoiser.batch_key(*pair) for pair in zip(requests, inputs, strict=True)}) == 1
    recorders = [Recorder() for _ in requests]
    outcomes = model.denoiser.run_batch(
        [Lane(*lane) for lane in zip(requests, inputs, recorders, strict=True)]
    )
    alone = [model.alone(*pair) for pair in zip(requests, inputs, strict=True)]
    for outcome, expected in zip(outcomes, alone, strict=True):
        assert_close(outcome, expected)
    assert spread(alone) > 0.1, "lanes so alike that one could pass for another"
    assert recorders[0].steps and all(recorder.steps == recorders[0].steps for recorder in recorders)


def spread(results: list[dict[str, Value]]) -> float:
    latents = torch.cat([result["latents"] for result in results])  # type: ignore[misc]
    return float((latents[1:] - latents[:-1]).abs().mean())


def assert_close(outcome: object, expected: Mapping[str, Value]) -> None:
    assert isinstance(outcome, dict), outcome
    assert outcome.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(
                outcome[name], value, rtol=0, atol=TOLERANCE * float(value.abs().max())
            )
        elif isinstance(value, torch.Tensor):
            assert torch.equal(outcome[name], value)
        else:
            assert outcome[name] == value


@pytest.mark.parametrize("family", ["wan", "wan2.2", "qwen-image"])
def test_each_lane_has_its_own_guidance(opened: dict[str, Model], family: str) -> None:
    model, requests = opened[family], requests_of(family, num_inference_steps=5)
    for request, scale in zip(requests, (3.0, 5.0, 9.0), strict=True):
        request.guidance_scale = scale
        if request.HasField("guidance_scale_2"):
            request.guidance_scale_2 = scale / 2
    inputs = [model.encode(request) for request in requests]
    assert len({model.denoiser.batch_key(*pair) for pair in zip(requests, inputs, strict=True)}) == 1
    lanes = [Lane(request, values, Recorder()) for request, values in zip(requests, inputs, strict=True)]
    for lane, outcome in zip(lanes, model.denoiser.run_batch(lanes), strict=True):
        assert_close(outcome, model.alone(lane.generation, lane.inputs))
    clean = model.alone(requests[0], inputs[0])
    assert_close(model.alone(requests[0], inputs[0]), clean)


APART = [
    ("wan", {"num_frames": 9}),
    ("wan", {"width": 96}),
    ("wan", {"num_inference_steps": 3}),
    ("wan", {"flow_shift": 7.0}),
    ("wan", {"guidance_scale": 1.0}),
    ("wan", {"max_sequence_length": 4}),
    ("wan2.2", {"guidance_scale_2": 1.0}),
    ("wan2.2-ti2v", {"guidance_scale": 4.0}),
    ("wan2.2-ti2v", {"flow_shift": 7.0}),
    ("flux", {"guidance_scale": 6.0}),
    ("flux-schnell", {"flow_shift": 3.0}),
    ("qwen-image", {"true_cfg_scale": 1.0}),
]


@pytest.mark.parametrize(("family", "change"), APART)
def test_what_is_one_value_for_a_loop_keeps_requests_apart(
    opened: dict[str, Model], family: str, change: dict[str, Any]
) -> None:
    model, fields = opened[family], {**CASES[family].base.fields, "num_inference_steps": 2}
    requests = generation(**fields), generation(**{**fields, **change})
    keys = [model.denoiser.batch_key(request, model.encode(request)) for request in requests]
    assert None not in keys and keys[0] != keys[1]


def test_pictures_of_other_shapes_keep_requests_apart(opened: dict[str, Model]) -> None:
    model, (request, *_) = opened["wan-i2v"], requests_of("wan-i2v")
    inputs = model.encode(request, picture(0)), model.encode(request, picture(0).rotate(90, expand=True))
    assert len({model.denoiser.batch_key(request, values) for values in inputs}) == 2


def test_values_that_cannot_lie_side_by_side_run_alone(opened: dict[str, Model]) -> None:
    model, (request, *_) = opened["wan"], requests_of("wan")
    inputs = model.encode(request)
    embeddings = inputs["prompt_embeds"]
    assert isinstance(embeddings, torch.Tensor)
    for value in ([embeddings], embeddings.repeat(2, 1, 1), torch.tensor(1.0)):
        assert model.denoiser.batch_key(request, {**inputs, "prompt_embeds": value}) is None
    assert model.encoder.batch_key(request, {}) is None


@pytest.mark.parametrize("family", ["wan", "wan2.2-ti2v"])
def test_a_lane_that_leaves_or_cannot_begin_leaves_the_others_whole(
    opened: dict[str, Model], family: str
) -> None:
    model = opened[family]
    requests = requests_of(family, num_inference_steps=4)
    requests += [generation(**{**CASES[family].base.fields, "width": 63})]
    inputs = [model.encode(request) for request in requests[:3]]
    broken = {name: value for name, value in inputs[0].items() if name != "prompt_embeds"}
    lanes = [
        Lane(requests[0], inputs[0], Recorder()),
        Lane(requests[0], broken, Recorder()),
        Lane(requests[1], inputs[1], Recorder(cancel_after=2)),
        Lane(requests[3], inputs[0], Recorder()),
        Lane(requests[2], inputs[2], Recorder(cancel_after=0)),
        Lane(requests[2], inputs[2], Recorder()),
    ]
    first, missing, left, invalid, never, last = model.denoiser.run_batch(lanes)
    assert isinstance(missing, ValueError) and "prompt_embeds" in str(missing)
    assert isinstance(invalid, InvalidRequest) and "width" in str(invalid)
    assert isinstance(left, Cancelled) and isinstance(never, Cancelled)
    assert [len(recorder_of(lane).steps) for lane in lanes] == [4, 0, 2, 0, 0, 4]
    assert_close(first, model.alone(requests[0], inputs[0]))
    assert_close(last, model.alone(requests[2], inputs[2]))


def recorder_of(lane: Lane) -> Recorder:
    assert isinstance(lane.control, Recorder)
    return lane.control


def test_a_loop_that_nobody_wants_stops(opened: dict[str, Model]) -> None:
    model, requests = opened["wan"], requests_of("wan", num_inference_steps=4)
    recorders = [Recorder(cancel_after=1), Recorder(cancel_after=2), Recorder(cancel_after=2)]
    lanes = [Lane(r, model.encode(r), recorder) for r, recorder in zip(requests, recorders, strict=True)]
    assert all(isinstance(outcome, Cancelled) for outcome in model.denoiser.run_batch(lanes))
    assert [len(recorder.steps) for recorder in recorders] == [1, 2, 2]


def test_lanes_share_no_memory_with_their_inputs(opened: dict[str, Model]) -> None:
    """These are views of a pool: they are gone when a task has ended, while others' loop goes on."""
    model, requests = opened["wan"], requests_of("wan", num_inference_steps=3)
    inputs = [model.encode(request) for request in requests]
    expected = model.alone(requests[0], inputs[0])

    class Wiping(Recorder):
        def progress(self, step: int, total: int) -> None:
            super().progress(step, total)
            for values in inputs:
                for value in values.values():
                    if isinstance(value, torch.Tensor) and value.is_floating_point():
                        value.fill_(torch.nan)

    recorders = [Wiping(), Recorder(), Recorder()]
    lanes = [Lane(r, v, recorder) for r, v, recorder in zip(requests, inputs, recorders, strict=True)]
    assert_close(model.denoiser.run_batch(lanes)[0], expected)
