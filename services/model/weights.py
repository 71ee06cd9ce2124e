"""Loads a role's components, and takes nothing for granted in their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from services.model.base import ModelError
from services.model.folder import ModelFolder


def load_components(
    folder: ModelFolder,
    kinds: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> dict[str, Any]:
    """Components by name, of the classes ``kinds``. Raises ModelError."""
    absent = sorted(name for name in kinds if name not in folder.components)
    if absent:
        raise ModelError(f"{folder.path}: its index has no {', '.join(absent)}")
    folder.fetch_weights(kinds)
    return {name: _load(kind, folder, name, dtypes[name], device) for name, kind in kinds.items()}


def _load(kind: Any, folder: ModelFolder, name: str, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(kind, type):
        library, class_name = folder.components[name]
        raise ModelError(f"{folder.path / name}: {library} has no {class_name} here")
    loaded: Any = kind
    try:
        if issubclass(kind, torch.nn.Module):
            return _load_weights(kind, folder, name, dtype, device).to(device)
        return loaded.from_pretrained(folder.path / name)
    except ModelError:
        raise
    except Exception as error:  # whatever the libraries make of files that are not as they should be
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{folder.path / name}: cannot be loaded: {reason}") from error


def _load_weights(
    kind: Any, folder: ModelFolder, name: str, dtype: torch.dtype, device: torch.device
) -> torch.nn.Module:
    """Both libraries fill what a file lacks with random numbers and a warning: here it is an error."""
    # Tensor by tensor to where they belong: a host needs no room for what an accelerator will hold.
    place = {} if device.type == "cpu" else {"device_map": {"": device}}
    model, report = kind.from_pretrained(
        folder.path, subfolder=name, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
    )
    if report.get("mismatched_keys"):
        raise ModelError(f"{folder.path / name}: its weights have other shapes than its config says")
    missing = sorted(report["missing_keys"])
    if missing:
        example = missing[0]
        raise ModelError(f"{folder.path / name}: its weights lack {len(missing)} tensors, one is {example!r}")
    assert isinstance(model, torch.nn.Module)
    return model
