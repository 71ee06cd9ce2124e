"""The generated code is what the contract generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parent.parent / "proto"


def test_generated_code_has_not_drifted(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    binaries = Path(sys.executable).parent
    plugins = [f"--plugin={name}={binaries / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTO), *plugins, *outputs]
    subprocess.run([*command, str(PROTO / "triptych_proto" / "control.proto")], check=True)
    generated = sorted((tmp_path / "triptych_proto").iterdir())
    assert len(generated) == 4
    for path in generated:
        assert path.read_text() == (PROTO / "triptych_proto" / path.name).read_text(), (
            f"run make proto: {path.name}"
        )
