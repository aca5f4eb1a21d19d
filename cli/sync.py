"""`perdure sync`, `perdure flush` and `perdure ensure-synced`: do replicas have everything?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings

if TYPE_CHECKING:
    from ..recovery import NodeReport, SyncReport

TIMEOUT_S_MAX = 86_400
TimeoutS = Annotated[
    float,
    typer.Option("--timeout", min=0, max=TIMEOUT_S_MAX, metavar="SECONDS", help="Wait so long at most."),
]
COLUMNS = ("node", "state", "records", "error")


@reporting
def sync(
    directory: Directory,
    peer: Peers = None,
    secret_file: SecretFile = None,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Make every replica have everything that the primary's log holds now, on disk.

    Runs on the primary; where no shipper runs, one is started for as long as this takes. Exit code 1 says
    that a replica did not have everything when the time was up; `lacking` names it.

    \b
    Example:
      perdure sync /srv/n1 --timeout 60
    """
    from ..recovery import force_sync

    reach = Settings(directory).reach(peer, secret_file)
    with render.phases() as on_progress:

        def on_look(known: NodeReport) -> None:
            for replica in known.replicas:
                on_progress(replica.node, min(replica.acked_lsn, known.flushed_lsn), known.flushed_lsn)

        found = force_sync(directory, reach, timeout_ms=round(timeout_s * 1000), on_look=on_look)
    _show(found, as_json)


@reporting
def flush(
    directory: Directory,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas", min=0, help="So many replicas; without it as many as must confirm a write."
        ),
    ] = None,
    are_all: Annotated[bool, typer.Option("--all", help="All replicas.")] = False,
    peer: Peers = None,
    secret_file: SecretFile = None,
    timeout_s: TimeoutS = 10.0,
    as_json: AsJson = False,
) -> None:
    """Wait until everything acknowledged so far is on disk, here and on replicas.

    As many replicas as must confirm a write; all where none must. Exit code 1 when the time is up.

    \b
    Example:
      perdure flush /srv/n1 --timeout 5
      perdure flush /srv/n1 --all
    """
    from ..recovery import flush as flush_log
    from ..recovery import wait_for_replicas
    from ..store import UsageError

    if are_all and replicas is not None:
        raise UsageError("give one of --all and --replicas")
    reach = Settings(directory).reach(peer, secret_file)
    timeout_ms = round(timeout_s * 1000)
    if are_all:
        found = wait_for_replicas(directory, reach, timeout_ms=timeout_ms)
    else:
        found = flush_log(directory, reach, timeout_ms=timeout_ms, replicas=replicas)
    _show(found, as_json)


@reporting
def ensure_synced(
    directory: Directory,
    peer: Peers = None,
    secret_file: SecretFile = None,
    timeout_s: TimeoutS = 1.0,
    as_json: AsJson = False,
) -> None:
    """Say whether every replica has everything on disk; to be asked before a planned change of the primary.

    What is under way is waited for. Exit code 1 where a replica lacks something, or there is none at all.

    \b
    Example:
      perdure ensure-synced /srv/n1 && echo "safe to go on"
    """
    from ..recovery import ensure_synced as look

    reach = Settings(directory).reach(peer, secret_file)
    _show(look(directory, reach, timeout_ms=round(timeout_s * 1000)), as_json)


def values_of(found: SyncReport) -> dict[str, Any]:
    """A report under stable keys."""
    return {
        "node": found.node,
        "epoch": found.epoch,
        "lsn": found.lsn,
        "is_synced": found.is_synced,
        "synced_count": len(found.synced),
        "synced": found.synced,
        "needed": found.needed,
        "lacking": [msgspec.to_builtins(row) for row in found.lacking],
        "elapsed_ms": found.elapsed_ms,
    }


def _show(found: SyncReport, as_json: bool) -> None:
    values = values_of(found)
    if as_json:
        render.write_json(values)
    else:
        render.result({name: value for name, value in values.items() if name != "lacking"}, as_json=False)
        if found.lacking:
            print("\nlacking")
            render.rows(values["lacking"], as_json=False, columns=COLUMNS, key="lacking")
    leave(Exit.FINE if found.is_synced else Exit.FINDINGS)
