"""`perdure log`: read a log, event by event or as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import LSN_MAX, AsJson, Directory, find_store

SEGMENT_COLUMNS = (
    "name",
    "epoch",
    "primary",
    "first_lsn",
    "last_lsn",
    "frames",
    "events",
    "size_bytes",
    "is_sealed",
)

group = typer.Typer(help="Read a log: dump, stat.", no_args_is_help=True)


@group.command("dump")
@reporting
def dump(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="DIR_OR_SEGMENT",
            help="A store's directory, @NAME, one segment file, or a directory of them (DIR/diverged/...).",
            callback=find_store,
        ),
    ],
    from_lsn: Annotated[int, typer.Option("--from-lsn", min=1, max=LSN_MAX, help="The first LSN.")] = 1,
    to_lsn: Annotated[int | None, typer.Option("--to-lsn", min=1, max=LSN_MAX, help="The last LSN.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Only events of this session.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the events of a log, one a line; with --json one object a line.

    It only reads, and goes on behind damage, which is shown in its place; exit code 4 says that there was
    some.

    \b
    Example:
      perdure log dump /srv/n1 --session 9f86d081884c7d659a2feaa0c55ad015
    """
    from ..recovery import dump as dump_log

    damaged: list[str] = []

    def watched() -> Iterator[dict[str, Any]]:
        for event in dump_log(place, from_lsn=from_lsn, to_lsn=to_lsn, key=session):
            if "damage" in event:
                damaged.append(event["damage"])
            yield event

    render.stream(watched(), as_json=as_json, line=line_of)
    leave(Exit.CORRUPT if damaged else Exit.FINE)


@group.command("stat")
@reporting
def stat(directory: Directory, as_json: AsJson = False) -> None:
    """Say how a log is made up: segments, epochs, sizes, and where it ends.

    All of it is read. Exit code 4 says that a segment could not be read to its end.

    \b
    Example:
      perdure log stat /srv/n1 --json
    """
    from ..recovery import stat as stat_log

    found = stat_log(directory)
    values: dict[str, Any] = {
        "end": {"epoch": found.end.epoch, "lsn": found.end.lsn, "chain": f"{found.end.chain:016x}"},
        "sessions": found.session_count,
        "digest": f"{found.digest:016x}",
        "frames": found.frames,
        "events": found.events,
        "size_bytes": found.size_bytes,
        "mark_lsn": found.mark_lsn,
    }
    segments = [
        {**msgspec.to_builtins(segment), "events_per_s": segment.events_per_s} for segment in found.segments
    ]
    if as_json:
        render.write_json({**values, "epochs": msgspec.to_builtins(found.epochs), "segments": segments})
    else:
        render.result(values, as_json=False)
        render.rows(segments, as_json=False, columns=SEGMENT_COLUMNS, key="segments", empty="no segments")
        for segment in found.segments:
            if segment.problem:
                render.note(f"{segment.name}: {segment.problem}")
    leave(Exit.CORRUPT if any(segment.problem for segment in found.segments) else Exit.FINE)


def line_of(event: Mapping[str, Any]) -> str:
    if "damage" in event:
        return (
            f"DAMAGED {event['path']} offset {event['offset']} LSN {event['lsn'] or '-'}: {event['damage']}"
        )
    time = datetime.fromtimestamp(event["time_ms"] / 1000, UTC).isoformat(timespec="milliseconds")
    line = f"{event['lsn']:>10} {event['epoch']:>3} {time} {event['kind']:<11} {event['reason']:<10}"
    line += f" {event['key']}"
    if "new_key" in event:
        line += f" -> {event['new_key']}"
    for name in ("epoch_start", "config"):
        if name in event:
            line += f" {render.cell(event[name])}"
    return line.rstrip()
