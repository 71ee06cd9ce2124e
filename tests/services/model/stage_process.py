"""One role in a process of its own: ``ROLE JOBS`` works through a file of jobs, with values in files."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from services.model import open_model
from services.model.base import RoleModel
from services.role import Role
from tests.services.model.support import OPTIONS, Recorder
from transfer.manifest import Value, pack, unpack
from triptych_proto.control_pb2 import Generation


def load(path: Path) -> dict[str, Value]:
    manifest, payload = path.with_suffix(".manifest"), path.with_suffix(".payload")
    return unpack(manifest.read_bytes(), memoryview(bytearray(payload.read_bytes())))


def save(path: Path, values: dict[str, Value]) -> None:
    packed = pack(values)
    payload = bytearray(packed.nbytes)
    packed.write_into(memoryview(payload))
    path.with_suffix(".manifest").write_bytes(packed.manifest)
    path.with_suffix(".payload").write_bytes(payload)


@functools.cache
def opened(role: Role, folder: str) -> RoleModel:
    return open_model(role, folder, **OPTIONS)


def main() -> None:
    """Each job names a model's ``folder``, and a ``directory`` with ``request`` and images."""
    role = Role(sys.argv[1])
    for job in json.loads(Path(sys.argv[2]).read_bytes()):
        directory, model = Path(job["directory"]), opened(role, job["folder"])
        request = Generation.FromString((directory / "request").read_bytes())
        if role is Role.ENCODER:
            images = [Image.open(path) for path in sorted(directory.glob("*.png"))]
            save(directory / "encoded", model.run(request, {}, Recorder(), images))
        elif role is Role.DENOISER:
            save(directory / "denoised", model.run(request, load(directory / "encoded"), Recorder()))
        else:
            decoded = model.decode(request, load(directory / "denoised"), Recorder())
            np.save(directory / "frames.npy", np.concatenate(list(decoded.frames)))
            if decoded.sound is not None:
                np.savez(directory / "sound.npz", samples=decoded.sound.samples, rate=decoded.sound.rate)


if __name__ == "__main__":
    main()
