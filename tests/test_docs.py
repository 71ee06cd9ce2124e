"""The documentation's commands are real, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import triptych
from services.model_source import EMULATED

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The words of every line of a bash block."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def triptych_commands() -> list[list[str]]:
    return [words[1:] for page in PAGES for words in commands(page) if words[0] == "triptych"]


def test_the_pages_show_commands() -> None:
    assert len(triptych_commands()) >= 8


@pytest.mark.parametrize("words", triptych_commands(), ids=" ".join)
def test_every_command_line_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(triptych.COMMANDS[words[0]][0], fromlist=["run"])
    monkeypatch.setattr(module, "run", lambda args: 0)
    assert triptych.main(words) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    (topics,) = re.findall(r"^TOPICS := (.*)$", makefile, re.MULTILINE)
    targets |= {f"bench-{topic}" for topic in topics.split()}
    named = {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert named and named <= targets


def test_the_emulated_model_is_spelled_as_documented() -> None:
    assert EMULATED in (ROOT / "docs" / "development.md").read_text()
