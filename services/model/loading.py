"""Opens a role's part of a model: folder, family, blocks, and the weights of this role alone."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import diffusers
import torch
import transformers

from services.model.adapter import ModularRole
from services.model.base import Limits, ModelError
from services.model.families import Family, ModularFamily, family_of
from services.model.folder import ModelFolder, open_folder
from services.model.proxies import attach_proxies
from services.model.request import OPTIONS
from services.model.schedule import shift_option
from services.model.split import components, split
from services.role import Role
from triptych_proto.control_pb2 import Generation, Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    role: Role,
    model: str,
    *,
    device: str,
    dtype: str,
    name: str | None,
    limits: Limits,
    threads: int | None,
) -> ModularRole:
    """As ``services.model.open_model``, for models that have weights."""
    _quieten()
    # Results depend on the count; said outright, MKL no longer adapts it by itself.
    torch.set_num_threads(threads or torch.get_num_threads())
    place = _device(device)
    precision = _dtype(dtype, place)
    folder = open_folder(model)
    family = family_of(folder)
    fingerprint = folder.fingerprint()
    dtypes = {c: torch.float32 if c in family.float32 else precision for c in folder.components}

    assert isinstance(family, ModularFamily)
    pipeline_class = getattr(diffusers, family.modular_pipeline)
    blocks = getattr(diffusers, pipeline_class.default_blocks_name)()
    family.mend(blocks)
    # The index is passed along: a modular index in the same folder may point to other models.
    pipeline = pipeline_class(
        blocks=split(blocks)[role],
        pretrained_model_name_or_path=str(folder.path),
        config_dict=dict(folder.index),
    )
    config_only = family.config_only.get(role, frozenset())
    held = components(blocks, role, family.workflows) - config_only
    _load_components(pipeline, folder, held, dtypes, place)
    attach_proxies(pipeline, folder, dtypes, config_only, place)

    facts = _facts(pipeline, folder, family, limits, _options(blocks, folder, family))
    facts.name = name or folder.name
    facts.fingerprint = fingerprint
    return ModularRole(role, family, pipeline, blocks, facts, limits, place, precision)


def _quieten() -> None:
    """Errors come as exceptions and progress goes to the orchestrator: neither belongs into the log twice."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    # It logs the traceback of whatever passes through a block, a cancelled run's too.
    logging.getLogger("diffusers.modular_pipelines.modular_pipeline").setLevel(logging.CRITICAL)


def _device(text: str) -> torch.device:
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"device {text!r} is not available: {reason}") from error
    return device


def _dtype(text: str, device: torch.device) -> torch.dtype:
    if text == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if text not in DTYPES:
        raise ModelError(f"dtype {text!r} is unknown, expected auto, {', '.join(DTYPES)}")
    return DTYPES[text]


def _load_components(
    pipeline: Any,
    folder: ModelFolder,
    held: set[str],
    dtypes: dict[str, torch.dtype],
    device: torch.device,
) -> None:
    names = [name for name in pipeline.null_component_names if name in held]
    absent = [name for name in names if name not in folder.components]
    if absent:
        raise ModelError(f"{folder.path}: its index has no {', '.join(absent)}")
    folder.fetch_weights(names)
    loaded = {}
    for name in names:
        spec = pipeline.get_component_spec(name)
        try:
            if issubclass(spec.type_hint, torch.nn.Module):
                loaded[name] = _load_weights(spec.type_hint, folder, name, dtypes[name]).to(device)
            else:
                loaded[name] = spec.load()
        except ModelError:
            raise
        except Exception as error:  # whatever the libraries make of files that are not as they should be
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelError(f"{folder.path / name}: cannot be loaded: {reason}") from error
    pipeline.register_components(**loaded)


def _load_weights(kind: Any, folder: ModelFolder, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Both libraries fill what a file lacks with random numbers and a warning: here it is an error."""
    model, report = kind.from_pretrained(
        folder.path, subfolder=name, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if report.get("mismatched_keys"):
        raise ModelError(f"{folder.path / name}: its weights have other shapes than its config says")
    missing = sorted(report["missing_keys"])
    if missing:
        example = missing[0]
        raise ModelError(f"{folder.path / name}: its weights lack {len(missing)} tensors, one is {example!r}")
    assert isinstance(model, torch.nn.Module)
    return model


def _options(blocks: Any, folder: ModelFolder, family: Family) -> list[str]:
    """Those of ``OPTIONS`` that the blocks take, or that follow from configs."""
    asked = {parameter.name for parameter in blocks.inputs}
    found = set(family.options)
    if "max_sequence_length" in asked:
        found.add("max_sequence_length")
    if "strength" in asked and family.images[1]:
        found.add("strength")
    if any(spec.name == "guider_2" for spec in blocks.expected_components):
        found.add("guidance_scale_2")
    if folder.has_config("scheduler") and shift_option(folder.config("scheduler")):
        found.add("flow_shift")
    return [name for name in OPTIONS if name in found]


def _facts(pipeline: Any, folder: ModelFolder, family: Family, limits: Limits, options: list[str]) -> Model:
    """All but the name and the fingerprint."""
    spatial, temporal = family.multiples(pipeline)
    defaults = folder.serving_defaults(family.defaults)
    if defaults.width % spatial or defaults.height % spatial or (defaults.num_frames - 1) % temporal:
        size = f"{defaults.width}x{defaults.height} with {defaults.num_frames} frames"
        raise ModelError(
            f"{folder.path}: its default of {size} cannot be: width and height are multiples of {spatial},"
            f" num_frames a multiple of {temporal} plus 1"
        )
    given = {name: value for name, value in asdict(defaults).items() if value is not None}
    if stray := sorted(name for name in given if name in OPTIONS and name not in options):
        raise ModelError(f"{folder.path}: a default for {', '.join(stray)}, which the model does not take")
    return Model(
        family=family.name,
        spatial_multiple=spatial,
        temporal_multiple=temporal,
        max_pixels=limits.max_pixels,
        max_frames=1 if family.output == "image" else limits.max_frames,
        max_steps=limits.max_steps,
        defaults=Generation(**given),
        negative_prompt=family.negative_prompt,
        output=family.output,
        sound=family.sound,
        min_images=family.images[0],
        max_images=family.images[1],
        options=options,
    )
