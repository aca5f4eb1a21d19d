"""`perdure transfers` and `perdure transfer`: what replicas do not have yet, and seeing to it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from ..store import UsageError
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Keys, Peers, SecretFile
from .reconcile import COLUMNS as COMPARED_COLUMNS
from .reconcile import values_of as compared
from .settings import Settings, open_store
from .sync import TimeoutS

PENDING_MAX = 100
LACKING_COLUMNS = ("node", "state", "records", "error")
COLUMNS = ("node", "state", "from_lsn", "records", "bytes", "age_ms", "error")


@reporting
def transfers(
    directory: Directory,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=PENDING_MAX, help="List so many at most, the oldest first.")
    ] = PENDING_MAX,
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """List what each replica is still to be sent or to confirm: records, bytes, and the age of the oldest.

    Runs on the primary. A replica that has everything has no row. Exit code 1 where there is one.

    \b
    Example:
      perdure transfers /srv/n1
    """
    from ..recovery import transfers as pending

    found = pending(directory, Settings(directory).reach(peer, secret_file), limit=limit)
    rows = [msgspec.to_builtins(row) for row in found]
    render.rows(rows, as_json=as_json, columns=COLUMNS, key="transfers", empty="none pending")
    leave(Exit.FINDINGS if rows else Exit.FINE)


@reporting
def transfer(
    directory: Directory,
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="The node that is to have them.")],
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help=f"The sessions, at most {PENDING_MAX} at once."),
    ] = None,
    are_all: Annotated[bool, typer.Option("--all", help="All sessions.")] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Say what differs, and mend nothing.")] = False,
    peer: Peers = None,
    secret_file: SecretFile = None,
    keys: Keys = None,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Make sure that a node has sessions: their last change on its disk, and the same records as here.

    Runs on the primary. First the node's log is made to reach that far, then the sessions are compared at one
    position; where one differs, the node is reconciled. Exit code 1 where that was not reached.

    \b
    Example:
      perdure transfer /srv/n1 --to n2 --all
      perdure transfer /srv/n1 --to n2 9f86d081884c7d659a2feaa0c55ad015
    """
    from ..recovery import NodeReport, force_transfer

    if bool(ids) == are_all:
        raise UsageError("give either ids or --all")
    reach = Settings(directory).reach(peer, secret_file)
    stored: list[str] | None = None
    if ids:
        with open_store(directory, reads=True, keys=keys) as store:
            stored = [store.stored_as(id) for id in ids]
    with render.phases() as on_progress:

        def on_look(known: NodeReport) -> None:
            replica = known.replica(to)
            on_progress(to, replica.acked_lsn if replica else 0, known.flushed_lsn)

        found = force_transfer(
            directory,
            to,
            reach,
            ids=stored,
            timeout_ms=round(timeout_s * 1000),
            repairs=not is_dry,
            on_look=on_look,
        )
    values: dict[str, Any] = {
        "node": found.node,
        "is_done": found.is_done,
        "sessions": found.sessions,
        "not_in_log": found.not_in_log,
        "lsn": found.sync.lsn,
        "is_synced": found.sync.is_synced,
        "lacking": msgspec.to_builtins(found.sync.lacking),
        "differing": found.differing,
        "not_asked": found.not_asked,
        "comparison": compared(found.comparison) if found.comparison else None,
        "elapsed_ms": found.elapsed_ms,
    }
    if as_json:
        render.write_json(values)
    else:
        nodes, lacking = values.pop("comparison"), values.pop("lacking")
        render.result(values, as_json=False)
        if lacking:
            render.rows(lacking, as_json=False, columns=LACKING_COLUMNS, key="lacking")
        if nodes is not None:
            render.rows(nodes["nodes"], as_json=False, columns=COMPARED_COLUMNS, key="nodes")
    leave(Exit.FINE if found.is_done else Exit.FINDINGS)
