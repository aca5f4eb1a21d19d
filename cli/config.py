"""`perdure config`: what the options are, where each comes from, and whether the configuration is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..store import Configuration, UsageError, inspect_config
from ..store.options import OPTIONS, SECTIONS
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson

COLUMNS = ("option", "value", "source", "where", "allowed")

group = typer.Typer(help="The configuration: show, check.", no_args_is_help=True)

MaybeDirectory = Annotated[
    str | None,
    typer.Argument(metavar="DIR", help="A store's directory, or @NAME; without it all stores' options."),
]


@group.command("show")
@reporting
def show(directory: MaybeDirectory = None, as_json: AsJson = False) -> None:
    """Show every option with its value and where that comes from: environment, file or default.

    \b
    Example:
      perdure config show /srv/n1
    """
    found = _found(directory)
    found.require()
    rows = [
        {
            "option": known.key,
            "value": "(a key file's text)" if _is_secret(setting.value) else setting.value,
            "source": setting.source,
            "where": setting.where,
            "allowed": known.allowed,
        }
        for known in OPTIONS
        for setting in [found.setting(known.section, known.name, _store(found, directory))]
    ]
    file = None if found.file is None else str(found.file)
    stores = {name: str(path) for name, path in found.stores.items()}
    if as_json:
        render.write_json({"file": file, "stores": stores, "options": rows})
        return
    render.result({"file": file or "none", "stores": stores}, as_json=False)
    render.rows(rows, as_json=False, columns=COLUMNS, key="options")


@group.command("check")
@reporting
def check(directory: MaybeDirectory = None, as_json: AsJson = False) -> None:
    """Say everything that is wrong in the configuration, and what works but not as its words say.

    Exit code 2 says that something is wrong, 1 that there is something to know: an old name that was
    understood, or that has no effect.

    \b
    Example:
      perdure config check /srv/n1 --json
    """
    found = _found(directory)
    problems = [
        {"message": problem.message, "path": problem.path, "hint": problem.hint}
        for problem in (*found.problems, *_backend_problems(found))
    ]
    notes = [{"where": note.where, "key": note.key, "text": note.text} for note in found.notes]
    file = None if found.file is None else str(found.file)
    if as_json:
        render.write_json({"file": file, "problems": problems, "notes": notes})
    else:
        print(f"file: {file or 'none'}")
        for row in problems:
            print("problem: " + "; ".join(filter(None, (row["message"], row["hint"]))))
        for note in found.notes:
            print(f"note: {note.where}: {note.key}: {note.text}")
        if not problems and not notes:
            print("all is well")
    leave(Exit.USAGE if problems else Exit.FINDINGS if notes else Exit.FINE)


def _is_secret(value: Any) -> bool:
    """Is it the text of a key file? It is never shown."""
    return isinstance(value, str) and value.lstrip().startswith("{")


def _found(directory: str | None) -> Configuration:
    if directory is None or directory.startswith("@"):
        found = inspect_config()
        if directory is not None:
            found.path_of(directory[1:])
        return found
    return inspect_config(directory=directory)


def _store(found: Configuration, directory: str | None) -> str:
    if directory is None:
        return ""
    return directory[1:] if directory.startswith("@") else found.name_of(Path(directory))


def _backend_problems(found: Configuration) -> list[UsageError]:
    """Back ends that are not installed here; opening a store finds them by itself."""
    from ..store.backends import backend_kind

    problems: list[UsageError] = []
    for level in (found.in_file, found.in_environment):
        for (_, section, name), setting in level.items():
            if (section, name) == (SECTIONS[0], "backend") and setting.value is not None:
                try:
                    backend_kind(setting.value)
                except UsageError as error:
                    problems.append(
                        UsageError(
                            f"backend in {setting.where}: {error.message}", path=found.file, hint=error.hint
                        )
                    )
    return problems
