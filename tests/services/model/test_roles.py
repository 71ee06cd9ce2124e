"""What a role holds, says of itself, asks for and hands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.model.base import InvalidRequest, Value
from services.role import Role
from tests.services.model.support import Recorder, Roles, generation
from transfer.manifest import pack

WEIGHTS = {
    "encoder": ("text_encoder", "model.safetensors"),
    "denoiser": ("transformer", "diffusion_pytorch_model.safetensors"),
    "decoder": ("vae", "diffusion_pytorch_model.safetensors"),
}


@pytest.mark.parametrize("role", Role)
def test_a_role_holds_its_own_parameters_and_no_others(roles: Roles, tiny_model: Path, role: Role) -> None:
    component, file = WEIGHTS[role.value]
    model = getattr(roles, role.value)
    modules = {
        name: module for name, module in vars(model.pipeline).items() if isinstance(module, torch.nn.Module)
    }
    assert set(modules) == {component}
    stored = sum(tensor.numel() for tensor in load_file(tiny_model / component / file).values())
    held = {p.data_ptr(): p.numel() for p in modules[component].parameters()}
    assert sum(held.values()) == stored
    for other in {"transformer", "vae"} - {component}:
        proxy = getattr(model.pipeline, other)
        assert all(p.device.type == "meta" for p in proxy.parameters())


def test_facts(roles: Roles) -> None:
    facts = roles.encoder.facts
    assert facts == roles.denoiser.facts == roles.decoder.facts
    assert (facts.name, facts.family, facts.negative_prompt) == ("tiny-wan", "wan", True)
    assert (facts.spatial_multiple, facts.temporal_multiple) == (16, 4)
    assert (facts.max_pixels, facts.max_frames, facts.max_steps) == (1280 * 720, 129, 200)
    defaults = facts.defaults
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (128, 128, 17, 8.0)
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (10, 5.0)
    assert len(facts.fingerprint) == 16


@pytest.mark.parametrize(("width", "height", "num_frames"), [(64, 64, 1), (96, 64, 9)])
def test_sizes_are_known_before_the_run(roles: Roles, width: int, height: int, num_frames: int) -> None:
    request = generation(width=width, height=height, num_frames=num_frames, num_inference_steps=1)
    embeddings = roles.encoder.run(request, {}, Recorder())
    latents = roles.denoiser.run(request, embeddings, Recorder())
    assert pack(embeddings).nbytes == roles.encoder.output_bytes(request)
    assert pack(latents).nbytes == roles.denoiser.output_bytes(request)
    assert roles.decoder.output_bytes(request) == 0


def test_pools_are_sized_by_the_largest_request(roles: Roles) -> None:
    largest = generation(width=1280, height=720, num_frames=129)
    assert roles.denoiser.largest_output_bytes() == roles.denoiser.output_bytes(largest)
    assert roles.denoiser.largest_output_bytes() == 4 * 16 * 33 * 160 * 90
    assert roles.decoder.largest_input_bytes() == roles.denoiser.largest_output_bytes()
    assert roles.denoiser.largest_input_bytes() == roles.encoder.largest_output_bytes() == 2 * 4 * 512 * 64
    assert roles.encoder.largest_input_bytes() == roles.decoder.largest_output_bytes() == 0


@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_a_missing_input_is_named(roles: Roles, name: str) -> None:
    embeddings = roles.encoder.run(generation(), {}, Recorder())
    for value in ({}, {name: None}):
        inputs: dict[str, Value] = {k: v for k, v in embeddings.items() if k != name} | value
        with pytest.raises(ValueError, match=f"denoiser needs '{name}'"):
            roles.denoiser.run(generation(), inputs, Recorder())


def test_missing_latents_are_named(roles: Roles) -> None:
    with pytest.raises(ValueError, match="decoder needs 'latents'"):
        roles.decoded(generation(), {})


def test_an_input_that_nobody_asks_for_is_named(roles: Roles) -> None:
    latents = roles.latents(generation(num_inference_steps=1))
    with pytest.raises(ValueError, match="decoder received 'audio'"):
        roles.decoded(generation(), {**latents, "audio": torch.zeros(1)})


def test_latents_of_another_request_are_refused(roles: Roles) -> None:
    latents = roles.latents(generation(num_inference_steps=1))
    with pytest.raises(ValueError, match=r"'latents' have the shape \(1, 16, 2, 8, 8\)"):
        roles.decoded(generation(width=96), latents)


def test_runs_leave_their_inputs_alone(roles: Roles) -> None:
    """They may be views of a slot: read-only in spirit, and somebody else's memory afterwards."""
    request = generation(num_inference_steps=1)
    embeddings = roles.encoder.run(request, {}, Recorder())
    copies = {name: value.clone() for name, value in embeddings.items()}  # type: ignore[union-attr]
    latents = roles.denoiser.run(request, embeddings, Recorder())
    torch.testing.assert_close(embeddings, copies, rtol=0, atol=0)
    kept = latents["latents"].clone()  # type: ignore[union-attr]
    for value in embeddings.values():
        value.fill_(float("nan"))  # type: ignore[union-attr]
    torch.testing.assert_close(latents["latents"], kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 72),
        ("height", 0),
        ("num_frames", 6),
        ("num_frames", 133),
        ("num_inference_steps", 201),
        ("guidance_scale", float("nan")),
        ("width", 65536),
    ],
)
def test_a_request_that_cannot_be_served_names_the_field(roles: Roles, field: str, value: float) -> None:
    request = generation()
    setattr(request, field, value)
    with pytest.raises(InvalidRequest, match=field):
        roles.encoder.run(request, {}, Recorder())
