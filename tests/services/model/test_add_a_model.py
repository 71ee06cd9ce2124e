"""The page on adding a model: its commands run, and its code is the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "add-a-model.md").read_text()
SHOWN = ("services/model/families/flux2.py", "tests/services/model/cases_flux2.py")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_commands_print_what_it_shows(tmp_path: Path) -> None:
    model = tmp_path / "tiny-klein"
    commands = [block.strip() for block in blocks("bash") if block.startswith("python")]
    assert len(commands) == 2
    for command in commands:
        words = command.replace("/tmp/tiny-klein", str(model)).split()[1:]
        result = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
    (output,) = blocks("console")
    assert result.stdout == output


@pytest.mark.parametrize("block", blocks("python") + blocks("text"))
def test_its_code_is_the_code(block: str) -> None:
    assert any(block in (ROOT / path).read_text() for path in SHOWN)


def test_its_counts_are_right() -> None:
    row, tiny, cases = (
        (ROOT / path).read_text().splitlines() for path in (SHOWN[0], "deploy/tiny/flux2.py", SHOWN[1])
    )
    filled = sum(1 for line in row if line.strip())
    assert f"{len(row)} lines for two rows ({filled} without blank ones)" in " ".join(PAGE.split())
    assert f"tiny model is {len(tiny)} lines, its test cases are {len(cases)}" in " ".join(PAGE.split())
