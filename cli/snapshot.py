"""`perdure snapshot`: take, list and prune the snapshots of a node."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Yes

group = typer.Typer(help="Snapshots of a node: create, list, prune.", no_args_is_help=True)


@group.command("create")
@reporting
def create(
    directory: Directory,
    compress: Annotated[bool, typer.Option("--compress", help="Compress its chunks with zstd.")] = False,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, help="Remove older ones afterwards; keep the newest so many."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot, on a primary or a replica, while others write.

    \b
    Example:
      perdure snapshot create /srv/n1 --keep 3
    """
    from ..recovery import take_snapshot

    with render.progress("snapshot", unit="sessions") as advance:
        file = take_snapshot(directory, compress=compress, progress=advance, keep=keep)
    render.result(
        {"snapshot": str(file.path), "epoch": file.epoch, "lsn": file.lsn, "size_bytes": file.size_bytes},
        as_json=as_json,
    )


@group.command("list")
@reporting
def list_(
    directory: Directory,
    is_checked: Annotated[bool, typer.Option("--check", help="Read each of them to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the snapshots of a node, oldest first.

    Without --check only their heads are read, and their level is "unknown". Exit code 4 says that one of
    them is damaged or of another history.

    \b
    Example:
      perdure snapshot list /srv/n1 --check
    """
    from ..recovery import inspect_snapshots

    states = inspect_snapshots(directory, check=is_checked)
    rows: list[dict[str, Any]] = [
        {
            "snapshot": state.file.name,
            "epoch": state.file.epoch,
            "lsn": state.file.lsn,
            "size_bytes": state.file.size_bytes,
            "sessions": state.head.at.session_count if state.head else None,
            "digest": f"{state.head.at.digest:016x}" if state.head else None,
            "level": state.finding.level.value,
            "message": state.finding.message,
        }
        for state in states
    ]
    columns = ("snapshot", "epoch", "lsn", "size_bytes", "sessions", "level", "message")
    render.rows(rows, as_json=as_json, columns=columns, key="snapshots", empty="no snapshots")
    leave(Exit.CORRUPT if any(row["level"] == "corrupt" for row in rows) else Exit.FINE)


@group.command("prune")
@reporting
def prune(
    directory: Directory,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Keep the newest so many.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove all but the newest snapshots; the newest good one always stays.

    \b
    Example:
      perdure snapshot prune /srv/n1 --keep 3 --yes
    """
    from ..recovery import inspect_snapshots, prune_snapshots

    if not yes:
        there = [state.file.name for state in inspect_snapshots(directory)]
        found = {"removed": [], "would_remove": there[:-keep], "kept": there[-keep:]}
        render.result(found, as_json=as_json)
        render.note(
            "Nothing was removed; give --yes. A good one stays where the newest are not.", as_json=as_json
        )
        leave(Exit.FINDINGS if there[:-keep] else Exit.FINE)
        return
    removed = prune_snapshots(directory, keep=keep)
    kept = [state.file.name for state in inspect_snapshots(directory)]
    render.result(
        {"removed": [path.name for path in removed], "would_remove": [], "kept": kept}, as_json=as_json
    )
