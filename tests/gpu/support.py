"""A model's three roles on the GPU, with real bytes between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.guiders import BaseGuidance
from PIL import Image

from deploy.tiny.table import MODELS
from services.model import open_model
from services.model.base import RoleModel, Value
from services.model.families import FAMILIES, Family
from services.role import Role
from tests.services.model.support import Recorder
from transfer.manifest import pack, unpack
from triptych_proto.control_pb2 import Generation

DEVICE = "cuda:0"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Roles:
    """Three models that know nothing of each other."""

    encoder: RoleModel
    denoiser: RoleModel
    decoder: RoleModel

    @staticmethod
    def of(folder: Path, dtype: str) -> Roles:
        return Roles(*(open_model(role, str(folder), device=DEVICE, dtype=dtype) for role in Role))

    def latents(self, request: Generation, images: Sequence[Image.Image] = ()) -> dict[str, Value]:
        encoded = crossed(self.encoder.run(request, {}, Recorder(), images))
        return crossed(self.denoiser.run(request, encoded, Recorder()))

    def run(
        self, request: Generation, images: Sequence[Image.Image] = ()
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames, and the samples of the sound if there is any."""
        decoded = self.decoder.decode(request, self.latents(request, images), Recorder())
        frames = np.concatenate(list(decoded.frames))
        return frames, None if decoded.sound is None else decoded.sound.samples


def crossed(values: Mapping[str, Value]) -> dict[str, Value]:
    """As another role receives them: views of host memory."""
    packed = pack(values)
    payload = memoryview(bytearray(packed.nbytes))
    packed.write_into(payload)
    return unpack(packed.manifest, payload)


def row(family: str) -> Family:
    return next(row for row in FAMILIES if row.name == family)


def build(family: str, parent: Path) -> Path:
    return MODELS[family](parent / f"tiny-{family}", 0)


def guiders(scales: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: scale if isinstance(scale, BaseGuidance) else ClassifierFreeGuidance(guidance_scale=scale)
        for name, scale in scales.items()
    }


def sleep(seconds: float) -> None:
    """Keeps the GPU busy for about as long, after what was asked of it before; returns at once."""
    torch.cuda._sleep(int(seconds * 1.7e9))  # type: ignore[no-untyped-call]  # cycles
