"""docs/operations.md shows commands that exist, with options that exist, and every exit code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from perdure.cli.app import app
from perdure.cli.exits import Exit

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
ROOT: Any = typer.main.get_command(app)


def _shown() -> Iterator[str]:
    """Every command line in the page's examples, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.strip().startswith("perdure "):
                yield line.strip()


def _found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words behind its name."""
    command: Any = ROOT
    while getattr(command, "commands", None):
        command = command.commands[words[0]]
        words = words[1:]
    return command, words


@pytest.mark.parametrize("line", list(_shown()))
def test_each_example_parses(line: str) -> None:
    command, words = _found(shlex.split(line)[1:])
    command.make_context(command.name, words, resilient_parsing=False)


def test_each_command_stands_in_the_table() -> None:
    named = set(re.findall(r"^\| `perdure ([a-z -]+?)(?: [A-Z ]+)?` \|", PAGE, re.MULTILINE))
    expected: set[str] = set()
    for name, command in ROOT.commands.items():
        inner = getattr(command, "commands", None)
        expected |= {f"{name} {sub}" for sub in inner} if inner else {name}
    assert named == expected


def test_each_exit_code_stands_in_the_table() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert rows == {int(code) for code in Exit}
