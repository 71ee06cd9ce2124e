"""A model's folder: where it is, what its index and configs say, what it serves by default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from services.model.base import ModelError
from services.model_source import INDEX, problem

SERVING = "triptych.json"
CONFIG_NAMES = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "guider_config.json",
)
# Small, and every role reads the configs of all components. Weights never match: "*" crosses folders.
HUB_CONFIG_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
HUB_WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True)
class ServingDefaults:
    """What a request that leaves a field out gets. None: what the model does by itself."""

    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    flow_shift: float | None = None
    max_sequence_length: int | None = None
    strength: float | None = None


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder; perhaps without the weights of some components."""

    path: Path
    name: str  # what to call the model when nobody says otherwise
    hub_id: str | None = None

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """The pipeline's class, its options and, for each component, ``[library, class]``."""
        return _read_object(self.path / INDEX)

    @cached_property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of each component that the model has."""
        return {
            name: (entry[0], entry[1])
            for name, entry in self.index.items()
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        }

    def has_config(self, component: str) -> bool:
        """Whether the folder has this component's config."""
        return component in self.components and bool(self._find_configs(component))

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's config."""
        return _read_object(self._config_paths(component)[0])

    def fingerprint(self) -> str:
        """16 hex digits over the index and the configs of all components, not over weights."""
        digest = hashlib.sha256(_canonical(self.index))
        for component in sorted(self.components):
            for path in self._config_paths(component):
                digest.update(f"\0{component}/{path.name}\0".encode() + _canonical(_read_object(path)))
        return digest.hexdigest()[:16]

    def serving_defaults(self, family: ServingDefaults) -> ServingDefaults:
        """The family's, where ``triptych.json`` or a guider of the model's own does not say otherwise."""
        if self.has_config("guider"):
            guider = self.config("guider")
            scale = (
                guider.get("guidance_scale", family.guidance_scale) if guider.get("enabled", True) else 1.0
            )
            family = replace(family, guidance_scale=float(scale))
        path = self.path / SERVING
        if not path.exists():
            return family
        given = _read_object(path)
        known = {field.name: int if "int" in str(field.type) else float for field in fields(family)}
        for key, value in given.items():
            if key not in known:
                raise ModelError(f"{path}: unknown key {key!r}, expected some of {', '.join(known)}")
            number = isinstance(value, (int, known[key])) and not isinstance(value, bool)
            if not number or (value <= 0 and not (value == 0 and key == "guidance_scale")):
                raise ModelError(f"{path}: {key} is {value!r}, expected a positive {known[key].__name__}")
        return replace(family, **given)

    def fetch_weights(self, components: Iterable[str]) -> None:
        """Downloads the weights of these components; a local folder is taken as it is."""
        if self.hub_id is not None:
            # A snapshot's folder is named after its commit: configs and weights come from the same one.
            patterns = [f"{component}/{HUB_WEIGHT_FILES}" for component in components]
            _download(self.hub_id, patterns, revision=self.path.name)

    def _config_paths(self, component: str) -> list[Path]:
        found = self._find_configs(component)
        if not found:
            directory = self.path / component
            raise ModelError(f"{directory}: no config there; every role needs the configs of all components")
        return found

    def _find_configs(self, component: str) -> list[Path]:
        directory = self.path / component
        return [directory / name for name in CONFIG_NAMES if (directory / name).is_file()]


def open_folder(model: str) -> ModelFolder:
    """A folder, or else the hub's model of that id, without weights yet."""
    if reason := problem(model):
        raise ModelError(reason)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(path, path.resolve().name)
    folder = ModelFolder(_download(model, HUB_CONFIG_FILES), model, hub_id=model)
    if not (folder.path / INDEX).is_file():
        raise ModelError(f"{model}: no diffusers model: it has no {INDEX}")
    return folder


def _download(hub_id: str, patterns: list[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{hub_id}: no such folder, and the model hub says: {reason}") from error


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return value


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
