"""`perdure diverged`: what a rejoin exported: list, show, apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .log import line_of
from .options import LSN_MAX, AsJson, Directory, Keys
from .settings import open_store

if TYPE_CHECKING:
    from ..recovery import DivergedTail

LIST_COLUMNS = ("name", "fork_lsn", "epoch", "events", "sessions", "size_bytes", "problem")
APPLIED_COLUMNS = ("id", "lsn", "what", "outcome", "why")

group = typer.Typer(
    help="What only an old primary had, exported when it rejoined: list, show, apply.", no_args_is_help=True
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Of an export, as `perdure diverged list` shows it.")
]


@group.command("list")
@reporting
def list_(directory: Directory, as_json: AsJson = False) -> None:
    """List the exports of a node: where its history parted, and how much was written behind that.

    Exit code 4 says that one of them could not be read to its end.

    \b
    Example:
      perdure diverged list /srv/n1
    """
    from ..recovery import list_diverged

    found = list_diverged(directory)
    rows = [_row(tail) for tail in found]
    render.rows(rows, as_json=as_json, columns=LIST_COLUMNS, key="diverged", empty="nothing was exported")
    leave(Exit.CORRUPT if any(tail.problem for tail in found) else Exit.FINE)


def _row(tail: DivergedTail) -> dict[str, Any]:
    return {name: getattr(tail, name) for name in tail.__struct_fields__} | {"path": str(tail.path)}


@group.command("show")
@reporting
def show(
    directory: Directory,
    name: Name,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Only events of this session.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the events behind the fork, one a line; with --json one object a line.

    \b
    Example:
      perdure diverged show /srv/n1 00000000000000000101-00000001
    """
    from ..recovery import diverged_events

    damaged: list[str] = []

    def line(event: Mapping[str, Any]) -> str:
        if "damage" in event:
            damaged.append(event["damage"])
        return line_of(event)

    if not render.stream(diverged_events(directory, name, key=session), as_json=as_json, line=line):
        render.note("no events", as_json=as_json)
    leave(Exit.CORRUPT if damaged else Exit.FINE)


@group.command("apply")
@reporting
def apply(
    directory: Directory,
    name: Name,
    session: Annotated[
        list[str] | None, typer.Option("--session", metavar="ID", help="Only this session; repeat it.")
    ] = None,
    from_lsn: Annotated[int, typer.Option("--from", min=1, max=LSN_MAX, help="Only from this LSN.")] = 1,
    to_lsn: Annotated[
        int | None, typer.Option("--to", min=1, max=LSN_MAX, help="Only up to this LSN.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the session was changed since.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be applied and skipped.")
    ] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Submit exported changes again, as ordinary writes with the reason `reconciled`.

    What the old history last did to a session is done again, unless the session's content was changed since.
    Nothing is removed from the export. Exit code 1 says that something was skipped.

    \b
    Example:
      perdure diverged apply /srv/n1 00000000000000000101-00000001 --dry-run
    """
    from ..recovery import apply_diverged

    with open_store(directory, reads=dry_run, keys=keys) as store:
        done = apply_diverged(
            store,
            name,
            ids=session or None,
            from_lsn=from_lsn,
            to_lsn=LSN_MAX if to_lsn is None else to_lsn,
            force=force,
            dry_run=dry_run,
        )
    rows: list[dict[str, Any]] = [msgspec.to_builtins(one) for one in done]
    render.rows(rows, as_json=as_json, columns=APPLIED_COLUMNS, key="changes", empty="nothing to apply")
    leave(Exit.FINDINGS if any(one.outcome == "skipped" for one in done) else Exit.FINE)
