"""The house has one-way doors: which package may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"deploy", "orchestrator", "services", "transfer", "triptych_proto", "benchmarks", "tests"}
ALLOWED = {
    "transfer": set(),
    "services": {"transfer", "triptych_proto"},
    "orchestrator": {"transfer", "triptych_proto"},
    "benchmarks": {"deploy", "orchestrator", "services", "transfer", "triptych_proto"},
    "deploy": {"orchestrator", "services", "transfer"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names & PACKAGES


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported(path) - ALLOWED[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_every_module_says_what_it_is() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(text.split("\n")[0]) > 20, (
                f"{path.relative_to(ROOT)} needs a first line that says what it is"
            )


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("orchestrator.main", ("torch", "numpy", "diffusers")), ("services.options", ("torch", "diffusers"))],
)
def test_loads_no_tensor_library(module: str, heavy: tuple[str, ...]) -> None:
    """The orchestrator routes names of slots; options are there before a role loads anything, and for --help.
    torch would cost both seconds to start.
    """
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
