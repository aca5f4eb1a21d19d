"""`perdure migrate`: move a node's state to another back end while it is in use, and back."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from ..store import UsageError
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Yes


@reporting
def migrate(
    directory: Directory,
    to_backend: Annotated[
        str | None, typer.Option("--to-backend", metavar="NAME", help="Where the state is to be kept.")
    ] = None,
    is_back: Annotated[
        bool, typer.Option("--back", help="Go back to the state that was kept, caught up with the log.")
    ] = False,
    is_drop: Annotated[
        bool, typer.Option("--drop", help="Remove the state that was kept; there is no way back then.")
    ] = False,
    is_abort: Annotated[
        bool, typer.Option("--abort", help="Give up a migration or repair that was broken off.")
    ] = False,
    is_status: Annotated[bool, typer.Option("--status", help="Say how far it is.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move a node's state to another back end; readers and writers of all processes go on meanwhile.

    The new state is filled from a snapshot and the log, compared by count and digest, and switched in.
    What is broken off goes on where it was when it is begun again. The old state is kept until --drop,
    which needs --yes; until then --back returns to it. Applications that name their back end when they
    open the store have to name the new one from then on.

    \b
    Example:
      perdure migrate /srv/n1 --to-backend sqlite
      perdure migrate /srv/n1 --drop --yes
    """
    asked = [name for name, is_asked in _asked(to_backend, is_back, is_drop, is_abort, is_status) if is_asked]
    if len(asked) != 1:
        raise UsageError("give one of --to-backend, --back, --drop, --abort and --status")
    if is_drop:
        _drop(directory, yes=yes, as_json=as_json)
    elif is_abort:
        _abort(directory, as_json=as_json)
    elif is_status:
        _status(directory, as_json=as_json)
    else:
        _migrate(directory, to_backend, as_json=as_json)


def _asked(*values: object) -> list[tuple[str, bool]]:
    return list(zip(("to", "back", "drop", "abort", "status"), map(bool, values), strict=True))


def _migrate(directory: Directory, to_backend: str | None, *, as_json: bool) -> None:
    from .. import recovery

    with render.phases() as on_progress:
        if to_backend is None:
            report = recovery.migrate_back(directory, on_progress=on_progress)
        else:
            report = recovery.migrate(directory, to_backend=to_backend, on_progress=on_progress)
    values: dict[str, Any] = msgspec.structs.asdict(report)
    render.result({**values, "store": str(report.store), "kept": str(report.kept)}, as_json=as_json)


def _drop(directory: Directory, *, yes: bool, as_json: bool) -> None:
    from ..recovery import drop_previous, migration_state

    state = migration_state(directory)
    found = {"kept_backend": state.kept_backend, "freed_bytes": 0, "would_free_bytes": 0}
    if not yes:
        render.result({**found, "would_free_bytes": state.kept_bytes}, as_json=as_json)
        render.note("Nothing was removed; give --yes. There is no way back then.", as_json=as_json)
        leave(Exit.FINDINGS if state.kept_bytes else Exit.FINE)
        return
    render.result({**found, "freed_bytes": drop_previous(directory)}, as_json=as_json)


def _abort(directory: Directory, *, as_json: bool) -> None:
    from ..recovery import abort_migration

    render.result({"was_under_way": abort_migration(directory)}, as_json=as_json)


def _status(directory: Directory, *, as_json: bool) -> None:
    from ..recovery import migration_state

    render.result(msgspec.structs.asdict(migration_state(directory)), as_json=as_json)
