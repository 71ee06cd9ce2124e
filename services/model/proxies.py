"""Stand-ins for components that another role holds: their configs and sizes, none of their weights."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from services.model.base import ModelError
from services.model.folder import ModelFolder


class ConfigProxy:
    """Answers for a model that is not here: config, derived attributes, buffers and dtype.

    Without it blocks fall back to hard-coded scale factors and channel counts, in silence. It is no
    ``nn.Module``: a pipeline must not take it for the place and dtype of its weights.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._model = model

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if isinstance(value, torch.Tensor) and value.is_meta:
            kind = type(self._model).__name__
            raise RuntimeError(f"{kind}.{name} is asked for here, but its weights are with another role")
        return value


def proxies(
    folder: ModelFolder,
    present: Container[str],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    buffered: Container[str] = (),
) -> dict[str, ConfigProxy]:
    """A proxy for every diffusers model of ``folder`` that is not ``present``.

    Those of ``buffered`` are asked for more than config: their buffers are read, from the weights' file.
    """
    made = {}
    for name, (library, class_name) in folder.components.items():
        kind = component_class(library, class_name)
        if name in present or not isinstance(kind, type) or not issubclass(kind, diffusers.ModelMixin):
            continue
        constructed: Any = kind
        with torch.device("meta"):
            model = constructed.from_config(folder.config(name))
        if name in buffered:
            _read_buffers(model, folder, name, device)
        made[name] = ConfigProxy(model, dtypes[name])
    return made


def component_class(library: str, name: str) -> Any:
    """The class that a model's index names; None if there is no such class."""
    if library in ("diffusers", "transformers"):
        return getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
    return getattr(getattr(diffusers.pipelines, library, None), name, None)  # of one pipeline alone


def _read_buffers(model: torch.nn.Module, folder: ModelFolder, component: str, device: torch.device) -> None:
    """The buffers that are stored with the weights, such as ``latents_mean``: small, and read one by one."""
    stored = model.state_dict().keys() - dict(model.named_parameters()).keys()
    if not stored:
        return
    folder.fetch_weights([component])
    directory = folder.path / component
    try:
        for name in sorted(stored):
            owner, _, leaf = name.rpartition(".")
            with safe_open(directory / _weights_file(directory, name), "pt") as file:
                model.get_submodule(owner).register_buffer(leaf, file.get_tensor(name).to(device))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{directory}: its buffers, which this role needs, cannot be read: {reason}"
        ) from error


def _weights_file(directory: Path, tensor: str) -> str:
    index = directory / f"{SAFETENSORS_WEIGHTS_NAME}.index.json"
    if not index.is_file():
        return str(SAFETENSORS_WEIGHTS_NAME)
    files: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    if tensor not in files:
        raise ValueError(f"{index} has no {tensor!r}")
    return files[tensor]
