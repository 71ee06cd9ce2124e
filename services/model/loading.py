"""Opens a role's part of a model: folder, family, blocks, and the weights of this role alone."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

from services.model.adapter import ModularRole
from services.model.base import Limits, ModelError
from services.model.embedding_cache import EmbeddingCache
from services.model.facts import facts_of, options_of
from services.model.families import Family, ModularFamily, StandardFamily, family_of
from services.model.folder import ModelFolder
from services.model.proxies import component_class, proxies
from services.model.split import components, split
from services.model.standard import StandardRole
from services.model.weights import load_components
from services.role import Role
from triptych_proto.control_pb2 import Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    role: Role,
    folder: ModelFolder,
    *,
    device: str,
    dtype: str,
    name: str | None,
    limits: Limits,
    threads: int | None,
    embedding_cache: int,
) -> ModularRole | StandardRole:
    """As ``services.model.open_model``, of a model that has weights."""
    _quieten()
    # Results depend on the count; said outright, MKL no longer adapts it by itself.
    torch.set_num_threads(threads or torch.get_num_threads())
    place = _device(device)
    precision = _dtype(dtype, place)
    family = family_of(folder)
    dtypes = {c: torch.float32 if c in family.float32 else precision for c in folder.components}

    opened = _Opened(role, folder, dtypes, place, limits, name or folder.name, embedding_cache)
    if isinstance(family, StandardFamily):
        return _open_standard(opened, family, precision)
    assert isinstance(family, ModularFamily)
    return _open_modular(opened, family, precision)


@dataclass(frozen=True)
class _Opened:
    """What both kinds of adapter need."""

    role: Role
    folder: ModelFolder
    dtypes: Mapping[str, torch.dtype]
    device: torch.device
    limits: Limits
    name: str
    embedding_cache: int  # bytes

    def cache(self, *cached: object) -> EmbeddingCache | None:
        """If this is an encoder that has anything to be ``cached``."""
        wanted = self.role is Role.ENCODER and self.embedding_cache and any(cached)
        return EmbeddingCache(self.embedding_cache) if wanted else None

    def facts(self, pipeline: Any, family: Family, options: list[str]) -> Model:
        facts = facts_of(pipeline, self.folder, family, self.limits, options)
        facts.name = self.name
        facts.fingerprint = self.folder.fingerprint()
        return facts


def _open_modular(opened: _Opened, family: ModularFamily, precision: torch.dtype) -> ModularRole:
    role, folder, device = opened.role, opened.folder, opened.device
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
    kinds = {
        name: pipeline.get_component_spec(name).type_hint
        for name in pipeline.null_component_names
        if name in held
    }
    pipeline.register_components(**load_components(folder, kinds, opened.dtypes, device))
    present = {name for name, part in pipeline.components.items() if part is not None}
    for name, proxy in proxies(folder, present, opened.dtypes, device, config_only).items():
        setattr(pipeline, name, proxy)
    facts = opened.facts(pipeline, family, options_of(blocks, folder, family))
    cache = opened.cache(family.texts, family.cached_block)
    return ModularRole(role, family, pipeline, blocks, facts, device, precision, cache)


def _open_standard(opened: _Opened, family: StandardFamily, precision: torch.dtype) -> StandardRole:
    role, folder, device = opened.role, opened.folder, opened.device
    known = folder.components
    # Named or not: one that the index lacks is missed when it is loaded.
    kinds = {name: component_class(*known.get(name, ("", ""))) for name in family.holds[role]}
    parts = load_components(folder, kinds, opened.dtypes, device)
    parts |= proxies(folder, parts.keys(), opened.dtypes, device)
    options = {name: value for name, value in folder.index.items() if not isinstance(value, list)}
    kind = getattr(diffusers, family.index_class)
    asked = inspect.signature(kind.__init__).parameters
    given = {name: {**options, **parts}.get(name) for name in asked if name != "self"}
    pipeline = kind(**given)
    facts = opened.facts(pipeline, family, options_of(None, folder, family))
    cache = opened.cache(family.texts)
    return StandardRole(role, family, pipeline, facts, device, precision, cache)


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
    try:
        # What all models do, once, before gigabytes are loaded for it.
        ones = torch.ones(1, 1, 4, 4, 4, dtype=DTYPES[text], device=device)
        torch.nn.functional.conv3d(ones, ones[..., :1, :1, :1]).flatten(0, 3) @ ones[0, 0, 0]
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"dtype {text!r} is not for device {str(device)!r}: {reason}") from error
    return DTYPES[text]
