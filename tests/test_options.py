"""Every option does something: one that is parsed and not read fails here."""

from __future__ import annotations

import argparse
import ast
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from deploy import onebox
from orchestrator.http.arguments import limits
from orchestrator.http.options import HttpOptions
from orchestrator.request_options import FIELDS
from services.options import RoleOptions
from services.role import Role
from triptych import COMMANDS

ROOT = Path(__file__).parent.parent
# Read by a computed name: for one role after the other, or for each field of a request.
COMPUTED = {f"{role.value}{suffix}" for role in Role for suffix in ("_urls", "s")} | set(FIELDS)


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command][0]).add_arguments(parser)
    return parser


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those of its subcommands included."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                found += options_of(subparser)
    return found


def attributes_of(name: str) -> set[str]:
    """All X for which some module reads ``name.X``."""
    found: set[str] = set()
    for package in ("deploy", "orchestrator", "services"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == name
                ):
                    found.add(node.attr)
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                    found |= {
                        a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
                    }
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_read(command: str) -> None:
    options = {action.dest for action in options_of(parser_of(command))} - {"help"}
    assert options
    assert options - COMPUTED <= attributes_of("args")


def test_every_role_option_is_used() -> None:
    used = attributes_of("options")
    assert {field.name for field in fields(RoleOptions)} <= used


def test_limits_of_clients_reach_the_server() -> None:
    names = sorted(limits(parser_of("orchestrator").parse_args([])))
    words = [
        word for number, name in enumerate(names, 3) for word in (f"--{name.replace('_', '-')}", str(number))
    ]
    options = HttpOptions(**limits(parser_of("orchestrator").parse_args(words)))
    assert [getattr(options, name) for name in names] == list(range(3, 3 + len(names)))
    assert HttpOptions(**limits(parser_of("orchestrator").parse_args([]))) == HttpOptions()


def test_up_hands_every_option_on() -> None:
    parser = parser_of("up")
    words: list[str] = ["--model", "M"]
    expected: set[str] = set()
    for action in parser._actions:
        if action.dest in {"help", "model", "port", "host", "data_dir"} | COMPUTED:
            continue
        value = str(list(action.choices)[-1] if action.choices else 17)
        if value == str(action.default):
            value = str(next(iter(action.choices or [])))
        words += [action.option_strings[0]] if action.nargs == 0 else [action.option_strings[0], value]
        expected.add(action.option_strings[0])
    box = onebox.OneBox.from_arguments(parser.parse_args(words))
    handed = {*box._server_arguments, *box._role_arguments}
    handed |= {*box._encoder_arguments, *box._denoiser_arguments}
    assert expected <= handed


@pytest.mark.parametrize(
    ("words", "engines"), [([], "shm"), (["--transfer", "auto"], "auto"), (["--transfer", "zmq"], "zmq")]
)
def test_up_takes_shared_memory_unless_told_otherwise(words: list[str], engines: str) -> None:
    box = onebox.OneBox.from_arguments(parser_of("up").parse_args(["--model", "M", *words]))
    handed = box._role_arguments
    assert handed.count("--transfer") == 1
    assert handed[handed.index("--transfer") + 1] == engines


def test_every_option_has_a_help_text() -> None:
    for command in COMMANDS:
        for action in options_of(parser_of(command)):
            assert action.help, f"{command} {action.option_strings}"
            if isinstance(action, argparse._SubParsersAction):
                explained = {choice.dest for choice in action._choices_actions if choice.help}
                assert explained == set(action.choices), command
