"""`perdure repair`: make a damaged state anew from snapshot and log, while the store is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory


@reporting
def repair(
    directory: Directory,
    is_check: Annotated[bool, typer.Option("--check", help="Only say what is wrong.")] = False,
    is_unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Make the state anew without a check, whatever it is.")
    ] = False,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", help="Where the check may build its copies of the state."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a node's state against snapshot and log, and make it anew if it is damaged.

    Processes that have the store open go on, and go over to the new state; the damaged files are kept in
    `aside/`, with the reason. If snapshot and log do not give a state, nothing is changed. Exit code 0
    says that the state is right (now); otherwise 1 or 4 as with verify. A fault of the log, such as that of
    two primaries, stays, and the code is 1.

    \b
    Example:
      perdure repair /srv/n1 --check
      perdure repair /srv/n1
    """
    from ..recovery import repair as repair_store
    from ..store import UsageError
    from ..store.backends import shares_state

    if is_check and is_unchecked:
        raise UsageError("give one of --check and --unchecked")
    with render.phases() as on_progress:
        report = repair_store(
            directory, only_check=is_check, unchecked=is_unchecked, scratch=scratch, on_progress=on_progress
        )
    values = {
        "store": str(report.store),
        "backend": report.backend,
        "findings": [str(finding) for finding in report.findings],
        "is_repaired": report.is_repaired,
        "sessions": report.sessions if report.is_repaired else None,
        "digest": report.digest or None,
        "lsn": report.lsn if report.is_repaired else None,
        "base": report.base or None,
        "events": report.events,
        "write_pause_us": report.write_pause_us,
        "aside": str(report.aside) if report.aside else None,
        "elapsed_ms": report.elapsed_ms,
        "fault": report.fault or None,
    }
    render.result(values, as_json=as_json)
    if not shares_state(report.backend):
        render.note("There is nothing to repair: each opening makes the state anew.", as_json=as_json)
    if report.fault:
        render.note(
            f"A fault of the log stays: {report.fault}. `perdure rejoin DIR --dry-run` says what is only "
            "here; with --force this node becomes a replica again.",
            as_json=as_json,
        )
    leave(Exit(report.exit_code))
