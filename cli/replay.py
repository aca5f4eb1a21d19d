"""`perdure replay`: rebuild the sessions at a point of the log in a new directory."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..store import UsageError
from . import render
from .exits import Exit, leave, reporting
from .options import LSN_MAX, AsJson, Backend, Directory, NewDirectory

if TYPE_CHECKING:
    from ..recovery import ReplayReport

_MS_A_DAY_2001 = 978_307_200_000
"""A plain number below it is no time in ms that a log can hold, but surely one in seconds."""
_DIGITS_MAX = 15
"""Enough for the end of the year 9999, the last one that ISO 8601 has."""


@reporting
def replay(
    directory: Directory,
    into: NewDirectory,
    to_lsn: Annotated[
        int | None,
        typer.Option(
            "--to-lsn", min=0, max=LSN_MAX, help="Up to this LSN; a frame that it cuts is left out."
        ),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option(
            "--to-time", metavar="TIME", help="Up to this time: ISO 8601 with an offset, or ms since 1970."
        ),
    ] = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Fold snapshot and log into a new directory, and compare the digest at the end.

    Without a target it goes to the end of the log. What comes out is a store of its own, with a cluster id of
    its own; the source is only read, and may be dead or in use.

    \b
    Example:
      perdure replay /srv/n1 --into /srv/before --to-time 2026-03-01T12:00:00+01:00
    """
    from ..recovery import replay_to

    upto_ms = None if to_time is None else parse_time_ms(to_time)
    with render.progress("replay", unit="events") as advance:
        report = replay_to(
            directory, into, upto_lsn=to_lsn, upto_ms=upto_ms, backend=backend, progress=advance
        )
    render.result(_fields(report), as_json=as_json)
    is_worse = any(finding.level.value in ("warning", "corrupt", "unknown") for finding in report.findings)
    leave(Exit.FINDINGS if is_worse else Exit.FINE)


def _fields(report: ReplayReport) -> dict[str, Any]:
    """The report under stable keys."""
    position = report.position
    return {
        "source": str(report.source),
        "target": str(report.target),
        "cluster_id": report.cluster_id.hex(),
        "backend": report.backend,
        "base": report.base,
        "epoch": position.epoch,
        "lsn": position.lsn,
        "sessions": position.session_count,
        "digest": f"{position.digest:016x}",
        "time_ms": report.time_ms,
        "events": report.events,
        "frames": report.frames,
        "rounded_down": report.rounded_down,
        "at_end": report.at_end,
        "elapsed_ms": report.elapsed_ms,
        "findings": [str(finding) for finding in report.findings],
    }


def parse_time_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time with an offset, or of a number that says so. Raises
    UsageError."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    if is_number and int(text) >= _MS_A_DAY_2001:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UsageError(
            f"{text!r} is no time",
            hint="Give ISO 8601 with an offset (2026-03-01T12:00:00Z), or ms since 1970.",
        )
    return int(moment.timestamp() * 1000)
