"""`perdure locate`: where one session's last change is."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from ..store import SessionNotFoundError
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, IdArgument, Keys, Peers, SecretFile
from .settings import Settings, open_store
from .sync import TimeoutS

COLUMNS = ("node", "is_held", "is_applied", "said_by", "why")


@reporting
def locate(
    directory: Directory,
    id: IdArgument,
    wait_replicas: Annotated[
        int | None,
        typer.Option("--wait", min=1, max=64, metavar="K", help="Wait until so many replicas have it."),
    ] = None,
    peer: Peers = None,
    secret_file: SecretFile = None,
    keys: Keys = None,
    timeout_s: TimeoutS = 10.0,
    as_json: AsJson = False,
) -> None:
    """Say where a session's last change is: its LSN, the nodes that have it on disk, and how it stands.

    A change that is older than the log is not found; `oldest_lsn` says where the log begins. Exit code 1
    where there is no change, or, with --wait, where the time was up before so many replicas had it.

    \b
    Example:
      perdure locate /srv/n1 9f86d081884c7d659a2feaa0c55ad015 --peer n2=10.0.0.2:7001
      perdure locate /srv/n1 9f86d081884c7d659a2feaa0c55ad015 --wait 2 --timeout 5
    """
    from ..recovery import locate as find
    from ..recovery import wait_synced

    reach = Settings(directory).reach(peer, secret_file)
    with open_store(directory, reads=True, keys=keys) as store:
        stored = store.stored_as(id)
        exists = store.peek(id) is not None
    is_synced: bool | None = None
    if wait_replicas is not None:
        is_synced = wait_synced(directory, stored, wait_replicas, round(timeout_s * 1000), reach)
    found = find(directory, stored, reach)
    if found.change is None and not exists:
        raise SessionNotFoundError(
            f"no session {id!r}, and no change of one in the log",
            lsn=found.oldest_lsn,
            hint=f"The log begins with LSN {found.oldest_lsn}.",
        )
    change: dict[str, Any] = msgspec.to_builtins(found.change) if found.change else {}
    values: dict[str, Any] = {
        "id": id,
        "exists": exists,
        "lsn": change.get("lsn"),
        "position": str(found.change.position) if found.change else None,
        "kind": change.get("kind"),
        "time_ms": change.get("time_ms"),
        "sync_state": found.sync_state.value if found.sync_state else None,
        "is_committed": found.is_committed,
        "is_synced": is_synced,
        "primary": found.primary,
        "replicas_holding": found.replicas_holding,
        "oldest_lsn": found.oldest_lsn,
    }
    holders = [msgspec.to_builtins(holder) for holder in found.holders]
    if as_json:
        render.write_json({**values, "holders": holders})
    else:
        render.result(values, as_json=False)
        if holders:
            print("\nholders")
            render.rows(holders, as_json=False, columns=COLUMNS, key="holders")
    leave(Exit.FINDINGS if found.change is None or is_synced is False else Exit.FINE)
