"""What is drawn with rich: tables, colours, and what moves on a terminal.

Owns the consoles on stdout and stderr. `render` loads it when something is drawn: a command with --json does
without it, and so does a node.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text


def stdout() -> Console:
    # In a pipe nothing is wrapped: a line is a line.
    # What is shown is data: neither [words] in brackets nor :words: between colons mean anything.
    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def stderr() -> Console:
    return Console(file=sys.stderr, highlight=False)


def result(fields: Iterable[tuple[str, str]], title: str) -> None:
    """Names and values below each other."""
    console = stdout()
    if title:
        console.print(Text(title, style="bold"))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, value)
    console.print(table)


def rows(columns: Iterable[tuple[str, bool]], found: Iterable[Sequence[str]]) -> None:
    """A table; a column is its heading, and whether it holds numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, is_numeric in columns:
        table.add_column(heading, justify="right" if is_numeric else "left", overflow="fold")
    for row in found:
        table.add_row(*row)
    stdout().print(table)


def note(text: str) -> None:
    stderr().print(text, markup=False, highlight=False, soft_wrap=True)


def failure(message: str, where: str, hint: str) -> None:
    console = stderr()
    text = Text.assemble(("error: ", "bold red"), message, f" ({where})" if where else "")
    console.print(text, soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint), soft_wrap=True)


class Bars:
    """Bars of progress below each other, each with its name."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}

    def update(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._shown.add_task(name, total=total)
        self._shown.update(self._tasks[name], completed=done, total=total)


@contextmanager
def bars(unit: str | None = None) -> Generator[Bars, None, None]:
    """Bars on stderr: with a unit they go away at the end, without one they tell their speed and stay."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    beside = _Speed() if unit is None else TextColumn(unit)
    with Progress(
        *columns, beside, TimeElapsedColumn(), console=stderr(), transient=unit is not None
    ) as shown:
        yield Bars(shown)


class _Speed(ProgressColumn):
    """What is done a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
