"""docs/configuration.md: its tables are those of the code, its file is a right one, its examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from perdure.cli.app import app
from perdure.store import inspect_config
from perdure.store.old_options import OLD_OPTIONS
from perdure.store.option import Option
from perdure.store.options import OPTIONS, SECTIONS, names_of

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def _value(value: Any) -> str:
    if value is None or value == "":
        return "none" if value is None else '`""`'
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _row(option: Option) -> str:
    return f"| `{option.name}` | {option.allowed} | {_value(option.default)} | {option.doc} |"


def tables() -> dict[str, str]:
    """What the page must hold: the table of each section, and that of the old names."""
    head = "| option | value | default | what it is for |\n|---|---|---|---|\n"
    found = {
        section: head + "\n".join(_row(option) for option in OPTIONS if option.section == section)
        for section in SECTIONS
    }
    rows = (
        f"| `{old.name}` | {'understood as ' if old.has_effect else 'no effect: '}{old.ours} |"
        for old in OLD_OPTIONS.values()
    )
    found["old"] = "| old name | here |\n|---|---|\n" + "\n".join(rows)
    return found


def test_each_table_of_the_page_is_that_of_the_code() -> None:
    for name, table in tables().items():
        shown = re.search(rf"<!-- {name} -->\n(.*?)\n\n", PAGE, re.DOTALL)
        assert shown is not None, name
        assert shown[1] == table, f"the page's table of {name} should be:\n{table}"


def test_the_file_of_the_page_is_right_and_shows_every_section(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "perdure.toml").write_text(shown)
    found = inspect_config(tmp_path / "perdure.toml", environ={})
    assert found.problems == []
    assert found.notes == []
    assert found.stores == {"web": tmp_path / "web", "jobs": Path("/srv/jobs")}
    assert {section for _, section, _ in found.in_file} == set(SECTIONS)


def test_the_examples_in_python_run_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), "docs/configuration.md", "exec"), {"directory": tmp_path})  # noqa: S102


def test_the_commands_of_the_page_exist() -> None:
    root: Any = typer.main.get_command(app)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            words = [word for word in shlex.split(line) if "=" not in word]
            words = words[1:] if words[1] != "--config" else words[3:]
            command = root.commands[words[0]]
            if getattr(command, "commands", None):
                assert words[1] in command.commands, line


def test_a_section_has_no_option_twice() -> None:
    for section in SECTIONS:
        assert len(names_of(section)) == len(set(names_of(section)))
