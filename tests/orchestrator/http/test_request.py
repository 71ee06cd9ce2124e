"""The table of request fields: every input is either a valid Generation or a 400 that names a field."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.http import several
from orchestrator.http.errors import ApiError
from orchestrator.http.fields import WRAPPERS
from orchestrator.http.request import SEED_BITS, VideoRequest, parse_request
from orchestrator.http.video_fields import VIDEO
from tests.orchestrator.http.service import MODEL
from triptych_proto.control_pb2 import Generation, Model


def ask(*_models: Model, **fields: Any) -> VideoRequest:
    values = VIDEO.parse(fields).values
    return parse_request(values, _models or [MODEL], max_prompt_chars=8192, max_timeout=3600.0)


def parse(_model: Model = MODEL, /, **fields: Any) -> Generation:
    return ask(_model, **fields).generation


def attempt(raw: dict[str, Any]) -> Generation | ApiError:
    try:
        return parse(**raw)
    except ApiError as error:
        return error


def refuse(_model: Model = MODEL, /, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(_model, **fields)
    return caught.value


def assert_valid(generation: Generation, model: Model) -> None:
    assert generation.prompt.strip()
    assert "\0" not in generation.prompt + generation.negative_prompt
    assert generation.width > 0 and generation.height > 0
    assert generation.width % model.spatial_multiple == generation.height % model.spatial_multiple == 0
    assert generation.width * generation.height <= model.max_pixels
    assert (generation.num_frames - 1) % model.temporal_multiple == 0
    assert 1 <= generation.num_frames <= model.max_frames
    assert 1 <= generation.num_inference_steps <= model.max_steps
    assert math.isfinite(generation.fps) and generation.fps > 0
    assert math.isfinite(generation.guidance_scale)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=6,
)
likely = (
    st.integers(-2, 100)
    | st.integers(-2, 100).map(str)
    | st.integers(0, 2**70)
    | st.floats(-1, 100)
    | st.floats(-1, 100).map(str)
    | st.sampled_from(["64x32", "832x480", "16x16", "17x16", "99999x99999", "0x0", "1e400", "{}", ""])
)
names = st.sampled_from([*VIDEO.known, *WRAPPERS, *sorted(VIDEO.unsupported)]) | st.text()


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(names, json_values | likely), st.booleans())
@example({"prompt": "\ud800"}, False)
@example({"prompt": "a", "guidance_scale": 10**400}, False)
@example({"\ud800": 1}, False)
@example({"prompt": "a\0"}, False)
def test_any_value_is_refused_or_gives_a_valid_generation(raw: dict[str, Any], with_prompt: bool) -> None:
    if with_prompt:
        raw = {**raw, "prompt": "a cat"}
    result = attempt(raw)
    if isinstance(result, ApiError):
        assert result.status == (404 if result.code == "model_not_found" else 400)
        assert result.param is not None
        result.response()  # can be sent
    else:
        assert_valid(result, MODEL)
        Generation.FromString(result.SerializeToString())


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(VIDEO.known.keys() - {"model", "prompt"}, likely)))
def test_likely_values(raw: dict[str, Any]) -> None:
    result = attempt({"prompt": "a", **raw})
    if isinstance(result, ApiError):
        assert result.status == 400
        assert result.param in raw
    else:
        assert_valid(result, MODEL)


def test_defaults_fill_what_is_left_out() -> None:
    generation = parse(prompt=" a cat ", fps=None)
    seed = generation.seed
    assert generation == Generation(
        prompt=" a cat ",
        negative_prompt="blurry",
        width=64,
        height=32,
        num_frames=9,
        fps=16,
        num_inference_steps=4,
        guidance_scale=5,
        seed=seed,
    )
    assert seed < 2**SEED_BITS
    assert parse(prompt="a").seed != seed


def test_strings_are_coerced_by_the_type_of_the_field() -> None:
    text = parse(
        prompt="42",
        size="832x480",
        seconds="2",
        fps="8.0",
        seed=str(2**64 - 1),
        num_inference_steps="7",
        guidance_scale="7.5",
        user="me",
    )
    assert (text.prompt, text.width, text.height) == ("42", 832, 480)
    assert (text.num_frames, text.fps, text.seed) == (17, 8.0, 2**64 - 1)
    assert (text.num_inference_steps, text.guidance_scale) == (7, 7.5)


def test_a_whole_number_with_a_point() -> None:
    assert VIDEO.parse({"seed": 4.0, "priority": -10.0}).values == {"seed": 4, "priority": -10}


@pytest.mark.parametrize("value", ["", False, "false", "False", None])
def test_a_field_of_other_servers_that_asks_for_nothing(value: object) -> None:
    assert VIDEO.parse({"enable_teacache": value}).values == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", True),
        ("seed", 2.0**53),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("seed", "0x10"),
        ("seed", "٣"),
        ("num_frames", "9.0"),
        ("guidance_scale", True),
        ("guidance_scale", "nan"),
        ("guidance_scale", math.nan),
        ("guidance_scale", "inf"),
        ("guidance_scale", math.inf),
        ("fps", 0),
        ("seconds", 0),
        ("seconds", "4 s"),
        ("size", "64X32x"),
        ("size", "auto"),
        ("size", 64),
        ("prompt", 42),
        ("num_inference_steps", 51),
        ("num_inference_steps", 0),
        ("negative_prompt", ["a"]),
        ("negative_prompt", "a\0"),
        ("prompt", "\0"),
        ("user", "a\0b"),
        ("model", "\0"),
        ("negative_prompt", "\udfff"),
        ("priority", 11),
        ("priority", "-11"),
        ("priority", 0.5),
        ("timeout", 0.5),
        ("timeout", 3601),
        ("timeout", 86401),
        ("timeout", "soon"),
        ("width", 0),
        ("num_frames", 85),
        ("extra_params", "{'num_frames': 9}"),
        ("extra_body", [1]),
        ("input_reference", {"image_url": "x"}),
        ("nonsense", 1),
    ],
)
def test_a_bad_value_is_refused_naming_its_field(name: str, value: object) -> None:
    error = refuse(**{"prompt": "a", name: value})
    assert (error.status, error.param) == (400, name)
    assert name in error.message


OPTIONS = {
    "guidance_scale_2": 3.5,
    "true_cfg_scale": 4.0,
    "flow_shift": 5.0,
    "max_sequence_length": 256,
    "strength": 0.25,
}


def test_options_that_a_model_has() -> None:
    model = Model()
    model.CopyFrom(MODEL)
    model.MergeFrom(Model(options=list(OPTIONS), max_images=1))
    for options in (OPTIONS, {name: str(value) for name, value in OPTIONS.items()}):
        given = VIDEO.parse({"prompt": "a", **options})
        values = {**given.values, "input_reference": (b"image",)}
        made = parse_request(values, [model], max_prompt_chars=100, max_timeout=60.0)
        assert made.references == (b"image",)
        assert {name: getattr(made.generation, name) for name in OPTIONS} == OPTIONS
        assert all(made.generation.HasField(name) for name in OPTIONS)  # type: ignore[arg-type]
    made = parse_request({"prompt": "a"}, [model], max_prompt_chars=100, max_timeout=60.0)
    assert not any(made.generation.HasField(name) for name in OPTIONS)  # type: ignore[arg-type]


def test_defaults_of_options() -> None:
    model = Model()
    model.CopyFrom(MODEL)
    model.MergeFrom(Model(options=list(OPTIONS), max_images=1, defaults=Generation(**OPTIONS)))  # type: ignore[arg-type]

    def made(**values: Any) -> Generation:
        return parse_request({"prompt": "a", **values}, [model], max_prompt_chars=9, max_timeout=9).generation

    def options(generation: Generation) -> dict[str, Any]:
        return {name: getattr(generation, name) for name in OPTIONS if generation.HasField(name)}  # type: ignore[arg-type]

    assert options(made(input_reference=(b"image",))) == OPTIONS
    assert options(made(flow_shift=2.0)) == {
        name: value for name, value in {**OPTIONS, "flow_shift": 2.0}.items() if name != "strength"
    }
    model.options.remove("max_sequence_length")  # its default is of no use then
    assert "max_sequence_length" not in options(made())


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_that_it_has_not(name: str) -> None:
    error = refuse(prompt="a", **{name: OPTIONS[name]})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_field")
    assert f"model {MODEL.name} has no such option" in error.message
    for value in ("much", -1, 10**6, [1]):
        assert refuse(prompt="a", **{name: value}).code == "invalid_value"


def test_the_format_of_the_file() -> None:
    assert parse(prompt="a").format == ""
    assert "there is one format" in refuse(prompt="a", output_format="webm").message
    model = Model()
    model.CopyFrom(MODEL)
    model.formats[:] = ["mp4", "webm"]
    values = VIDEO.parse({"prompt": "a", "output_format": "webm"}).values
    made = parse_request(values, [model], max_prompt_chars=100, max_timeout=60.0)
    assert (made.generation.format, made.generation.quality) == ("webm", 0)
    with pytest.raises(ApiError, match="expected one of mp4, webm"):
        parse_request({**values, "output_format": "png"}, [model], max_prompt_chars=100, max_timeout=60.0)
    error = refuse(prompt="a", output_compression=50)
    assert (error.param, error.code) == ("output_compression", "unsupported_field")


@pytest.mark.parametrize("name", sorted(VIDEO.unsupported))
def test_what_no_model_can_do_is_refused_with_the_reason(name: str) -> None:
    error = refuse(prompt="a", **{name: 17})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_field")
    assert name in error.message and "unknown" not in error.message
    for nothing in (None, "", False, "false"):
        assert parse(prompt="a", **{name: nothing})


def test_how_many_are_asked_for() -> None:
    for asked, number in (({}, 1), ({"n": "3"}, 3), ({"num_outputs_per_prompt": 10}, 10)):
        assert several.count(VIDEO.parse(asked).values) == number
    assert several.count(VIDEO.parse({"n": 2, "num_outputs_per_prompt": "2"}).values) == 2
    with pytest.raises(ApiError, match="n and num_outputs_per_prompt say different numbers"):
        several.count(VIDEO.parse({"n": 2, "num_outputs_per_prompt": 3}).values)
    for wrong in (True, 0, 11, "x", [1]):
        with pytest.raises(ApiError) as caught:
            VIDEO.parse({"n": wrong})
        assert caught.value.param == "n"


def test_unknown_fields_can_be_let_pass() -> None:
    given = VIDEO.parse({"prompt": "a", "x": 1, "extra_body": {"y": None, "z": 2}}, ignore_unknown=True)
    assert (given.values, given.ignored) == ({"prompt": "a"}, ("x", "z"))
    with pytest.raises(ApiError, match="lora"):  # known, and not to be had
        VIDEO.parse({"prompt": "a", "lora": {"name": "x"}}, ignore_unknown=True)


@pytest.mark.parametrize("prompt", ["", "  \n", None])
def test_an_empty_prompt_is_refused(prompt: str | None) -> None:
    assert refuse(prompt=prompt).param == "prompt"


def test_priority_and_timeout() -> None:
    asked = ask(prompt="a", priority="10", timeout="3600")
    assert (asked.priority, asked.timeout) == (10, 3600.0)
    assert (ask(prompt="a").priority, ask(prompt="a", timeout=None).timeout) == (0, None)


def test_prompts_are_limited() -> None:
    assert parse(prompt="x" * 8192)
    assert refuse(prompt="x" * 8193).param == "prompt"
    assert refuse(prompt="x", negative_prompt="x" * 8193).param == "negative_prompt"


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({"num_frames": 13}, 13),
        ({"seconds": 1}, 17),  # 16 frames and one more
        ({"seconds": "5"}, 81),
        ({"seconds": 0.1, "fps": 30}, 5),  # 3.0000000000000004 frames are 3
        ({"seconds": 0.3, "fps": 30}, 9),
        ({"seconds": 5, "num_frames": 81}, 81),
        ({"fps": 8}, 9),
    ],
)
def test_the_number_of_frames(fields: dict[str, Any], frames: int) -> None:
    assert parse(prompt="a", **fields).num_frames == frames


def test_the_nearest_valid_values_are_named() -> None:
    assert "5 and 9" in refuse(prompt="a", num_frames=6).message
    error = refuse(prompt="a", size="70x33")
    assert error.param == "size"
    assert "64x32" in error.message
    assert "832x464" in refuse(_with(max_pixels=832 * 475), prompt="a", size="832x475").message


def test_contradictions_are_refused_naming_both() -> None:
    error = refuse(prompt="a", size="64x32", width=128)
    assert error.param == "width" and "64x32" in error.message
    error = refuse(prompt="a", seconds=1, num_frames=9)
    assert error.param == "num_frames" and "1 seconds" in error.message
    assert parse(prompt="a", size="64x32", width=64, height="32").width == 64


def test_limits_of_the_model() -> None:
    assert refuse(prompt="a", size="848x480").param == "size"
    assert refuse(prompt="a", height=16000).param == "height"
    assert refuse(prompt="a", seconds=6).param == "seconds"
    assert refuse(_with(max_pixels=64), prompt="a").param == "size"  # its own default is too large


def test_a_negative_prompt_on_a_distilled_model() -> None:
    model = _with(negative_prompt=False)
    assert refuse(model, prompt="a", negative_prompt="b").param == "negative_prompt"
    assert parse(model, prompt="a", negative_prompt="").negative_prompt == ""


def test_wrapped_fields_count_as_fields() -> None:
    assert parse(prompt="a", extra_params={"num_frames": "5"}).num_frames == 5
    assert parse(prompt="a", extra_body='{"num_frames": 5}').num_frames == 5
    assert refuse(prompt="a", num_frames=5, extra_body={"num_frames": 9}).param == "num_frames"


def test_models_are_found_by_name() -> None:
    other = _with(name="other")
    assert ask(MODEL, other, prompt="a", model="other").model is other
    error = refuse(prompt="a", model="sora-2")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    with pytest.raises(ApiError, match="served: org/tiny-wan, other") as caught:
        ask(MODEL, other, prompt="a")
    assert caught.value.param == "model"


def _with(**changes: Any) -> Model:
    model = Model()
    model.CopyFrom(MODEL)
    for name, value in changes.items():
        setattr(model, name, value)
    return model
