"""From the fields of a request to a Generation that the model can make, and how it is to be run."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.http.errors import ApiError, invalid
from orchestrator.http.fields import MAX_UINT32
from orchestrator.http.references import NAMES, Reference
from orchestrator.http.video_fields import OPTIONS
from triptych_proto.control_pb2 import Generation, Model

# Drawn seeds stay below 2**53: clients whose JSON numbers are doubles can send one back unchanged.
SEED_BITS = 53


@dataclass(frozen=True)
class VideoRequest:
    """What a client asks for. ``generation`` is all that the roles must know."""

    model: Model
    generation: Generation
    priority: int = 0  # higher goes first
    timeout: float | None = None  # in seconds; None: the server's
    references: tuple[Reference, ...] = ()
    references_field: str = NAMES[0]  # that has them


def parse_request(
    given: Mapping[str, Any], models: Sequence[Model], *, max_prompt_chars: int, max_timeout: float
) -> VideoRequest:
    """The request with each of the fields ``VIDEO`` either as given or the default; fields of other requests
    that are not among them mean nothing here. ``max_timeout`` is in seconds.

    Raises:
        ApiError: 404 for an unknown model, else 400 naming the field.
    """
    model = choose_model(given, models)
    width, height = _size(given, model)
    if makes_images(model):
        _refuse_length(given, model)
    fps = given.get("fps", model.defaults.fps)
    references_field, references = _references(given, model)
    generation = Generation(
        prompt=checked_prompt(given, max_prompt_chars),
        negative_prompt=_negative_prompt(given, model, max_prompt_chars),
        width=width,
        height=height,
        num_frames=_num_frames(given, model, fps),
        fps=fps,
        num_inference_steps=given.get("num_inference_steps", model.defaults.num_inference_steps),
        guidance_scale=given.get("guidance_scale", model.defaults.guidance_scale),
        seed=given["seed"] if "seed" in given else secrets.randbits(SEED_BITS),
        format=_format(given, model),
        quality=_quality(given, model),
        **_options(given, model, bool(references)),
    )
    if not 1 <= generation.num_inference_steps <= model.max_steps:
        steps = generation.num_inference_steps
        raise invalid(
            "num_inference_steps", f"num_inference_steps {steps} is not from 1 to {model.max_steps}"
        )
    return VideoRequest(
        model,
        generation,
        given.get("priority", 0),
        _timeout(given, max_timeout),
        references,
        references_field,
    )


def makes_images(model: Model) -> bool:
    return model.output == "image"


def find_model(name: str, models: Sequence[Model]) -> Model:
    """Raises ApiError, 404."""
    for model in models:
        if model.name == name:
            return model
    served = ", ".join(model.name for model in models) or "none yet"
    raise ApiError(
        404,
        f"model {name[:128]!r} is not served here; served: {served}",
        code="model_not_found",
        param="model",
    )


def choose_model(given: Mapping[str, Any], models: Sequence[Model]) -> Model:
    """The one that is named, or the only one. Raises ApiError: 404 or 400."""
    if "model" in given:
        return find_model(given["model"], models)
    if len(models) != 1:
        served = ", ".join(model.name for model in models)
        raise invalid("model", f"model is missing; served: {served}")
    return models[0]


def _refuse_length(given: Mapping[str, Any], model: Model) -> None:
    for name, default in (
        ("num_frames", model.defaults.num_frames),
        ("seconds", 1),
        ("fps", model.defaults.fps),
    ):
        if given.get(name, 1) not in (1, default):
            raise invalid(
                name, f"{name}: model {model.name} makes images, which have no length; leave it out"
            )


def _references(given: Mapping[str, Any], model: Model) -> tuple[str, tuple[Reference, ...]]:
    """The field that has the reference images, and these."""
    named = [name for name in NAMES if given.get(name)]
    if len(named) > 1:
        raise invalid(named[1], f"{named[1]} contradicts {named[0]}: only one of them can be given")
    name = named[0] if named else next((name for name in NAMES if name in given), NAMES[0])
    found: tuple[Reference, ...] = given.get(name, ())
    if found and not model.max_images:
        raise _unsupported(name, f"model {model.name} takes no reference images")
    if len(found) < model.min_images:
        needed = "a reference image" if model.min_images == 1 else f"{model.min_images} reference images"
        raise invalid(name, f"{name}: model {model.name} needs {needed}, and there are {len(found)}")
    if len(found) > model.max_images:
        limit = f"at most {model.max_images} reference images"
        raise invalid(name, f"{name}: model {model.name} takes {limit}, not {len(found)}")
    return name, found


def _options(given: Mapping[str, Any], model: Model, has_references: bool) -> dict[str, Any]:
    """Those of the optional fields of a Generation that are given, or that the model has defaults of."""
    options = {field.name: given[field.name] for field in OPTIONS if field.name in given}
    for name in options:
        if name not in model.options:
            raise _unsupported(name, f"model {model.name} has no such option")
    if "strength" in options and not has_references:
        raise invalid("strength", "strength needs a reference image, which it says how far to leave")
    defaults = {name: value for name, value in default_options(model).items() if name in model.options}
    if not has_references:
        defaults.pop("strength", None)
    return {**defaults, **options}


def default_options(model: Model) -> dict[str, Any]:
    """Those of the optional fields of a Generation of which the model has defaults."""
    names = [field.name for field in OPTIONS]
    return {name: getattr(model.defaults, name) for name in names if model.defaults.HasField(name)}  # type: ignore[arg-type]


def _format(given: Mapping[str, Any], model: Model) -> str:
    """Of the file; empty for the model's default."""
    wanted: str = given.get("output_format", "")
    if wanted and wanted not in model.formats:
        formats = f"one of {', '.join(model.formats)}" if model.formats else "nothing: there is one format"
        message = f"output_format: model {model.name} does not make {wanted[:32]!r}; expected {formats}"
        raise invalid("output_format", message)
    return wanted


def _quality(given: Mapping[str, Any], model: Model) -> int:
    """Of a lossy picture, 1 to 100; 0 for the default. OpenAI's field is called by the opposite."""
    wanted: int | None = given.get("output_compression")
    if wanted is None:
        return 0
    if not makes_images(model):
        raise _unsupported("output_compression", "the quality of a video file is fixed")
    format = given.get("output_format") or next(iter(model.formats), "png")
    if format == "png" and wanted != 100:
        raise invalid(
            "output_compression", "output_compression needs output_format jpeg or webp: PNG is lossless"
        )
    return max(wanted, 1)


def _unsupported(name: str, reason: str) -> ApiError:
    return ApiError(400, f"{name} is not supported: {reason}", code="unsupported_field", param=name)


def _timeout(given: Mapping[str, Any], limit: float) -> float | None:
    timeout: float | None = given.get("timeout")
    if timeout is not None and timeout > limit:
        raise invalid("timeout", f"timeout {timeout:g} is more than the {limit:g} seconds of this server")
    return timeout


def checked_prompt(given: Mapping[str, Any], limit: int) -> str:
    """Raises ApiError: 400 for none or one of more than ``limit`` characters."""
    prompt: str = given.get("prompt", "")
    if not prompt.strip():
        raise invalid("prompt", "prompt is missing or empty")
    return _limited("prompt", prompt, limit)


def _negative_prompt(given: Mapping[str, Any], model: Model, limit: int) -> str:
    prompt: str = given.get("negative_prompt", model.defaults.negative_prompt)
    if given.get("negative_prompt") and not model.negative_prompt:
        raise invalid(
            "negative_prompt", f"model {model.name} takes no negative prompt: its guidance is distilled"
        )
    return _limited("negative_prompt", prompt, limit)


def _limited(name: str, prompt: str, limit: int) -> str:
    if len(prompt) > limit:
        raise invalid(name, f"{name} has {len(prompt)} characters; at most {limit} are taken")
    return prompt


def _size(given: Mapping[str, Any], model: Model) -> tuple[int, int]:
    """Width and height in pixels: valid ones, from ``size`` or from ``width`` and ``height``."""
    width, height = given.get("size", (model.defaults.width, model.defaults.height))
    if "size" in given:
        for name, value in (("width", width), ("height", height)):
            if given.get(name, value) != value:
                raise invalid(name, f"{name} {given[name]} contradicts size {width}x{height}")
        param = "size"
    else:
        param = "width" if "width" in given else "height" if "height" in given else "size"
        width, height = given.get("width", width), given.get("height", height)
    if width * height > model.max_pixels:
        raise invalid(param, f"{param}: {width}x{height} is more than {model.max_pixels} pixels")
    step = max(model.spatial_multiple, 1)
    if width < 1 or height < 1 or width % step or height % step:
        raise invalid(
            param,
            f"{param}: {width}x{height} is not in multiples of {step} pixels; "
            f"the nearest valid size is {_nearest_size(width, height, step, model.max_pixels)}",
        )
    return width, height


def _nearest_size(width: int, height: int, step: int, max_pixels: int) -> str:
    near = [max(round(side / step), 1) * step for side in (width, height)]
    if near[0] * near[1] > max_pixels:
        near = [max(side // step, 1) * step for side in (width, height)]
    return f"{near[0]}x{near[1]}"


def _num_frames(given: Mapping[str, Any], model: Model, fps: float) -> int:
    """A valid number of frames: as given, enough for ``seconds``, or the model's default."""
    step = max(model.temporal_multiple, 1)
    frames: int = given.get("num_frames", model.defaults.num_frames)
    param = "num_frames"
    if "seconds" in given:
        enough = _frames_for(given["seconds"], fps, step)
        if "num_frames" in given and frames != enough:
            seconds = f"{given['seconds']:g} seconds at {fps:g} frames per second"
            raise invalid(param, f"num_frames {frames} contradicts {seconds}, which take {enough} frames")
        frames = enough
        param = "num_frames" if "num_frames" in given else "seconds"
    if frames > model.max_frames:
        raise invalid(param, f"{param}: {frames} frames are more than {model.max_frames}")
    if frames < 1 or (frames - 1) % step:
        below = max(frames - 1, 0) // step * step + 1
        nearest = " and ".join(str(n) for n in (below, below + step) if n <= model.max_frames)
        rule = f"not 1 more than a multiple of {step}"
        raise invalid(param, f"{param}: {frames} is {rule}; the nearest valid: {nearest}")
    return frames


def _frames_for(seconds: float, fps: float, step: int) -> int:
    """The least valid number of frames that last at least ``seconds``."""
    if not fps > 0:
        raise invalid("seconds", "seconds needs fps: this model has no frame rate of its own")
    # A product such as 0.1 * 30 must not round up to one frame more.
    least = max(math.ceil(seconds * fps - 1e-6), 1)
    return min(-(-(least - 1) // step) * step + 1, MAX_UINT32)
