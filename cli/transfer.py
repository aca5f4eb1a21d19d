"""`perdure export` and `perdure import`: sessions as JSON lines, out of a store and into one."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from ..store import ExportReport, Filter, UsageError, export_sessions, import_lines
from ..store.files import sync_directory, translated
from ..store.importing import OnConflict
from ..store.names import TEMPORARY_SUFFIX
from . import render
from .exits import reporting
from .options import AsJson, Directory, Keys, OfGroup, OfHomeNode, OfPriority, OfTag
from .settings import open_store

DASH = "-"


@reporting
def export(
    directory: Directory,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where the lines go; - is standard output.")
    ] = DASH,
    prefix: Annotated[str, typer.Option("--prefix", help="Only ids that begin so.")] = "",
    group: OfGroup = None,
    tag: OfTag = None,
    home_node: OfHomeNode = None,
    priority: OfPriority = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace the file if there is one.")] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Write the sessions as JSON lines: the state at one LSN, whatever is written meanwhile.

    A file gets its name once it is complete and on disk. With - the report goes to stderr, as one JSON line
    with --json.

    \b
    Example:
      perdure export /srv/n1 sessions.jsonl --group user-42
    """
    only = Filter(prefix, group or "", tag or "", home_node or "", priority or "")
    with open_store(directory, keys=keys, reads=True) as store:
        total = store.count()
        with _sink(file, yes) as sink, render.progress("export", total=total, unit="sessions") as advance:
            report = export_sessions(store, sink, only=only, progress=advance)
    _say(report, file, as_json)


@reporting
def import_(
    directory: Directory,
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - is standard input.")] = DASH,
    on_conflict: Annotated[
        OnConflict,
        typer.Option("--on-conflict", help="What becomes of a session that is there with another value."),
    ] = "skip",
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Store the sessions of an export, each exactly as it was; those that have expired are left out.

    A file is read to its end first: nothing is written unless every line, the count and the digest are right.
    If it is broken off, run it again: what is there already is found to be there. Exit code 4 says that the
    file is damaged, 2 that a line is none of a session, 1 that --on-conflict fail met a conflict.

    \b
    Example:
      perdure import /srv/n2 sessions.jsonl --on-conflict replace
    """
    with (
        _source(file) as (stream, size_bytes),
        open_store(directory, keys=keys) as store,
        render.progress("import", total=size_bytes, unit="bytes") as advance,
    ):
        report = import_lines(store, stream, name=file, on_conflict=on_conflict, progress=advance)
    values: dict[str, Any] = msgspec.to_builtins(report) | {"digest": f"{report.digest:016x}"}
    render.result(values, as_json=as_json)


def _say(report: ExportReport, file: str, as_json: bool) -> None:
    values = {
        "file": file,
        "epoch": report.position.epoch,
        "lsn": report.position.lsn,
        "sessions": report.sessions,
        "expired": report.expired,
        "digest": f"{report.digest:016x}",
    }
    if file != DASH:
        render.result(values, as_json=as_json)
    elif as_json:
        sys.stderr.write(msgspec.json.encode(values).decode() + "\n")
    else:
        render.note(f"{report.sessions} sessions at LSN {report.position.lsn}, digest {values['digest']}")


@contextmanager
def _sink(file: str, may_replace: bool) -> Generator[BinaryIO, None, None]:
    """Where an export goes; a file has its name only once all of it is on disk."""
    if file == DASH:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.exists() and not path.is_file() and not path.is_dir():
        # A rename would put a file in the place of a device or a pipe.
        raise UsageError("it is a device or a pipe", path=path, hint="Write to - and redirect that.")
    if path.exists() and not may_replace:
        raise UsageError("there is such a file already", path=path, hint="Give --yes to replace it.")
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with translated("cannot write the export", path):
        try:
            with temporary.open("wb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextmanager
def _source(file: str) -> Generator[tuple[BinaryIO, int | None], None, None]:
    """An export to read, and its size in bytes where that is known."""
    if file == DASH:
        yield sys.stdin.buffer, None
        return
    with translated("cannot read the export", file), Path(file).open("rb") as stream:
        yield stream, os.fstat(stream.fileno()).st_size
