"""Stand-ins for components that another role holds: their configs and sizes, none of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from services.model.folder import ModelFolder


class ConfigProxy:
    """Answers for a model that is not here: config, derived attributes and dtype.

    Without it blocks fall back to hard-coded scale factors and channel counts, in silence. It is no
    ``nn.Module``: a pipeline must not take it for the place and dtype of its weights.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def attach_proxies(pipeline: Any, folder: ModelFolder, dtypes: Mapping[str, torch.dtype]) -> None:
    """Puts a proxy in the place of every diffusers model of ``folder`` that ``pipeline`` has not loaded."""
    for name, (library, class_name) in folder.components.items():
        kind: Any = getattr(diffusers, class_name, None) if library == "diffusers" else None
        if not hasattr(kind, "from_config") or not issubclass(kind, diffusers.ModelMixin):
            continue
        if getattr(pipeline, name, None) is None:
            with torch.device("meta"):
                model = kind.from_config(folder.config(name))
            setattr(pipeline, name, ConfigProxy(model, dtypes[name]))
