"""The split holds across processes: nothing but the values crosses, and nothing is said on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from services.role import Role
from tests.services.model.support import fused_frames, generation

ROOT = Path(__file__).parents[3]


def test_three_processes_make_what_one_does(tiny_model: Path, fused: Any, tmp_path: Path) -> None:
    request = generation(prompt="a bird over water", num_frames=9)
    (tmp_path / "request").write_bytes(request.SerializeToString())
    source = tmp_path / "nothing"
    for role in Role:
        target = tmp_path / f"{role.value}.npy"
        command = [sys.executable, "-m", "tests.services.model.stage_process", role.value, str(tiny_model)]
        result = subprocess.run(
            [*command, str(tmp_path / "request"), str(source), str(target)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        source = target
    np.testing.assert_array_equal(np.load(target), fused_frames(fused, request))
