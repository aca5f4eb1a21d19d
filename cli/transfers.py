"""`perdure transfers`: what replicas do not have yet."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Peers
from .settings import Settings

PENDING_MAX = 100
COLUMNS = ("node", "state", "from_lsn", "records", "bytes", "age_ms", "error")


@reporting
def transfers(
    directory: Directory,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=PENDING_MAX, help="List so many at most, the oldest first.")
    ] = PENDING_MAX,
    peer: Peers = None,
    as_json: AsJson = False,
) -> None:
    """List what each replica is still to be sent or to confirm: records, bytes, and the age of the oldest.

    Runs on the primary. A replica that has everything has no row. Exit code 1 where there is one.

    \b
    Example:
      perdure transfers /srv/n1
    """
    from ..recovery import Reach
    from ..recovery import transfers as pending

    found = pending(directory, Reach(Settings(directory).peers(peer)), limit=limit)
    rows = [msgspec.to_builtins(row) for row in found]
    render.rows(rows, as_json=as_json, columns=COLUMNS, key="transfers", empty="none pending")
    leave(Exit.FINDINGS if rows else Exit.FINE)
