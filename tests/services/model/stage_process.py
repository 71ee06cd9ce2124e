"""One role in a process of its own: ``ROLE FOLDER REQUEST INPUT OUTPUT``, values and frames in files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from services.model import open_model
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


def main() -> None:
    role, folder, request = (
        Role(sys.argv[1]),
        sys.argv[2],
        Generation.FromString(Path(sys.argv[3]).read_bytes()),
    )
    source, target = Path(sys.argv[4]), Path(sys.argv[5])
    model = open_model(role, folder, **OPTIONS)
    inputs = {} if role is Role.ENCODER else load(source)
    if role is Role.DECODER:
        np.save(target, np.concatenate(list(model.decode(request, inputs, Recorder()).frames)))
    else:
        save(target, model.run(request, inputs, Recorder()))


if __name__ == "__main__":
    main()
