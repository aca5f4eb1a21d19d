"""How results look: tables and lines for people, JSON with stable keys for programs.

Owns everything that is written to stdout and stderr; `drawing` does what only people see, and is loaded then.
Invariant: with --json stdout holds JSON and nothing else; progress goes to stderr, and only where that is a
terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from ..store.errors import names_node

REFRESH_HZ = 8
TIMES = frozenset(
    {"at_ms", "created_at", "expires_at", "last_accessed", "last_seen_ms", "max_expires_at", "time_ms"}
)
"""Fields that hold milliseconds since 1970. People read them as a date and a time, programs as a number."""
METADATA = "metadata"
TIME_MAX_MS = 253_402_300_799_999
"""The last moment that has a date; 0 is no moment, but that there was none."""

Advance = Callable[[int], None]
"""Told how much of a long work is done so far."""
Show = Callable[[dict[str, Any]], None]
"""Shows one result."""


def result(values: Mapping[str, Any], *, as_json: bool, title: str = "") -> None:
    """Show one result: its fields below each other, or one JSON object."""
    if as_json:
        write_json(values)
        return
    from . import drawing

    drawing.result(((name.replace("_", " "), field(name, value)) for name, value in values.items()), title)


def rows(
    found: Iterable[Mapping[str, Any]],
    *,
    as_json: bool,
    columns: Sequence[str],
    key: str,
    empty: str = "none",
) -> None:
    """Show a bounded list of results: a table with these columns, or one JSON object that holds all under
    `key`."""
    listed = list(found)
    if as_json:
        write_json({key: listed})
        return
    from . import drawing

    if not listed:
        drawing.stdout().print(empty)
        return
    headings = [(name.replace("_", " "), _holds_numbers(name, listed)) for name in columns]
    drawing.rows(headings, ([field(name, row.get(name)) for name in columns] for row in listed))


def stream(
    found: Iterable[Mapping[str, Any]],
    *,
    as_json: bool,
    line: Callable[[Mapping[str, Any]], str],
    flush: bool = False,
) -> int:
    """Show an unbounded list as it comes, one JSON object or one line each; answers how many there were.

    With `flush` each is written before the next one is asked for.
    """
    count = 0
    for row in found:
        sys.stdout.write((_encode(row) if as_json else line(row)) + "\n")
        if flush:
            sys.stdout.flush()
        count += 1
    return count


def note(text: str, *, as_json: bool = False) -> None:
    """Say something that is no result: on stderr, and not at all with --json."""
    if not as_json:
        from . import drawing

        drawing.note(text)


def failure(known: Mapping[str, Any], *, as_json: bool) -> None:
    """Show why a command failed: what, where, and what to do next."""
    if as_json:
        write_json({"error": known})
        return
    from . import drawing

    message = str(known["message"])
    where = ", ".join(
        f"{name} {known[name]}"
        for name in ("path", "offset", "lsn", "node")
        if name in known and not (name == "node" and names_node(message, str(known[name])))
    )
    drawing.failure(message, where, str(known.get("hint") or ""))


def write_json(values: Any) -> None:
    """One JSON value and a newline on stdout."""
    sys.stdout.write(_encode(values) + "\n")
    sys.stdout.flush()


def is_live() -> bool:
    """May something move on the screen? Only where stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress(what: str, *, total: int | None = None, unit: str = "") -> Generator[Advance, None, None]:
    """A progress line on stderr while a long work runs; nothing at all in a pipe."""
    if not is_live():
        yield _nothing
        return
    from . import drawing

    with drawing.bars(unit) as shown:
        shown.update(what, 0, total)
        yield lambda done: shown.update(what, done, total)


@contextmanager
def phases() -> Generator[Callable[[str, int, int], None], None, None]:
    """The phases of a long work, a bar for each with what is done a second; nothing at all in a pipe.

    Gives a function of the phase, how much of it is done, and how much there is (0: not known).
    """
    if not is_live():
        yield _no_phase
        return
    from . import drawing

    with drawing.bars() as shown:
        yield lambda phase, done, total: shown.update(phase, done, total or None)


def _no_phase(_phase: str, _done: int, _total: int) -> None: ...


@contextmanager
def in_place() -> Generator[Callable[[Callable[[], None]], None], None, None]:
    """Show things one after the other in the same place of a terminal; in a pipe, below each other."""
    from . import drawing

    console = drawing.stdout()
    is_live = console.is_terminal

    def show(draw: Callable[[], None]) -> None:
        if is_live:
            console.clear()
        draw()
        sys.stdout.flush()

    if not is_live:
        yield show
        return
    with console.screen(hide_cursor=True):
        yield show


@contextmanager
def steps() -> Generator[Callable[[str], None], None, None]:
    """Name the steps of a work as they begin, on stderr; nothing at all in a pipe."""
    if not is_live():
        yield lambda step: None
        return
    from . import drawing

    with drawing.stderr().status("") as status:
        yield status.update


def field(name: str, value: Any) -> str:
    """A named value as people read it; what metadata hold is nobody's field."""
    if isinstance(value, Mapping) and name != METADATA:
        parts = cast(Mapping[str, Any], value).items()
        return ", ".join(f"{part} {field(part, inner)}" for part, inner in parts) or "-"
    if name in TIMES and isinstance(value, int) and 0 < value <= TIME_MAX_MS:
        return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds")
    return cell(value)


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3g}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return (
            ", ".join(f"{name} {cell(part)}" for name, part in cast(Mapping[str, Any], value).items()) or "-"
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in cast(Sequence[Any], value)) or "-"
    return str(value)


def _holds_numbers(name: str, listed: Sequence[Mapping[str, Any]]) -> bool:
    return name not in TIMES and all(isinstance(row.get(name), (int, float)) for row in listed)


def _nothing(_done: int) -> None: ...


def _encode(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=_as_text).decode()


def _as_text(value: Any) -> Any:
    return str(value)
