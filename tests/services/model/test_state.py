"""What crosses between roles that Wan does not need: generators, groups, values that skip a role."""

from __future__ import annotations

import pytest
import torch

from services.model.split import Cut
from services.model.state import check_received, hand_on, open_state
from services.role import Role
from tests.services.model.support import generation
from transfer.manifest import Value, pack, unpack

CPU = torch.device("cpu")


def cut(*names: str, required: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> Cut:
    return Cut(frozenset(names), frozenset(required), frozenset(groups))


def carried(values: dict[str, Value]) -> dict[str, Value]:
    packed = pack(values)
    payload = bytearray(packed.nbytes)
    packed.write_into(memoryview(payload))
    return unpack(packed.manifest, memoryview(payload))


def test_a_generator_draws_on_where_it_stopped() -> None:
    request = generation(seed=5)
    expected = torch.randn(6, generator=torch.Generator().manual_seed(5))
    state = open_state(request, {}, ["generator"], CPU, {})
    first = torch.randn(2, generator=state.get("generator"))
    values = carried(hand_on(Role.ENCODER, cut("generator"), state, request, {}))
    state = open_state(request, values, ["generator"], CPU, {})
    rest = torch.randn(4, generator=state.get("generator"))
    assert torch.equal(torch.cat([first, rest]), expected)


def test_a_group_arrives_with_its_members() -> None:
    state = open_state(generation(), {}, [], CPU, {})
    state.set("control", torch.ones(2), "denoiser_input_fields")
    state.set("other", torch.ones(2), "unwanted_fields")
    wanted = cut(groups=("denoiser_input_fields",))
    values = carried(hand_on(Role.ENCODER, wanted, state, generation(), {}))
    check_received(Role.DENOISER, wanted, values)
    arrived = open_state(generation(), values, [], CPU, {})
    assert list(arrived.get_by_kwargs("denoiser_input_fields")) == ["control"]
    assert "other" not in arrived.values


def test_what_a_request_says_crosses_only_if_a_role_changed_it() -> None:
    request = generation(width=64, height=64)
    asked = ["width", "height"]
    state = open_state(request, {}, asked, CPU, {})
    state.set("width", 32)
    values = hand_on(Role.ENCODER, cut(*asked), state, request, {})
    assert values == {"width": 32}
    state = open_state(request, values, asked, CPU, {})
    assert (state.get("width"), state.get("height")) == (32, 64)
    assert hand_on(Role.DENOISER, cut(*asked), state, request, values) == {"width": 32}


def test_values_pass_a_role_that_does_not_use_them_and_keep_no_memory_of_a_slot() -> None:
    frame, mask = torch.ones(2), torch.ones(2)
    received: dict[str, Value] = {"frames": [frame, {"mask": mask}], "count": 3}
    state = open_state(generation(), received, [], CPU, {})
    values = hand_on(Role.DENOISER, cut("frames", "count"), state, generation(), received)
    for tensor in (frame, mask):
        tensor.zero_()
    kept = {"frames": [torch.ones(2), {"mask": torch.ones(2)}], "count": 3}
    torch.testing.assert_close(values, kept, rtol=0, atol=0)


def test_the_sender_names_what_it_did_not_make() -> None:
    state = open_state(generation(), {}, [], CPU, {})
    state.set("pooled", None)
    needed = cut("embeds", "pooled", required=("embeds", "pooled"))
    with pytest.raises(ValueError, match="encoder made no 'embeds', 'pooled'"):
        hand_on(Role.ENCODER, needed, state, generation(), {})
