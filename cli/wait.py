"""`perdure wait`: wait until a node or its cluster is ready, synced, failed over or recovered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import LSN_MAX, AsJson, Directory, Peers, SecretFile
from .settings import Settings
from .sync import TimeoutS

TargetName = Literal["ready", "synced", "failover", "recovered"]


@reporting
def wait(
    target: Annotated[TargetName, typer.Argument(metavar="WHAT", help="What to wait for.")],
    directory: Directory,
    from_epoch: Annotated[
        int | None,
        typer.Option(
            "--from-epoch",
            min=0,
            max=LSN_MAX,
            help="For failover: the epoch to be left behind; without it that of the first look.",
        ),
    ] = None,
    peer: Peers = None,
    secret_file: SecretFile = None,
    timeout_s: TimeoutS = 30.0,
    as_json: AsJson = False,
) -> None:
    """Wait until a node or its cluster is in a state.

    Exit code 1 says that the time was up; `why` says what was missing then.

    ready: this node does its work. synced: every replica of this primary has everything on disk.
    failover: a primary serves in another epoch. recovered: every voter is there, with everything on disk and
    in its state.

    \b
    Example:
      perdure wait ready /srv/n2 --timeout 30
      perdure wait failover /srv/n2 --peer n3=10.0.0.3:7001 --timeout 60
    """
    from ..recovery import Target, wait_for

    reach = Settings(directory).reach(peer, secret_file)
    with render.steps() as step:
        found = wait_for(
            directory,
            Target(target),
            reach,
            timeout_ms=round(timeout_s * 1000),
            from_epoch=from_epoch,
            on_look=step,
        )
    values: dict[str, Any] = msgspec.to_builtins(found)
    render.result(values, as_json=as_json)
    leave(Exit.FINE if found.is_reached else Exit.FINDINGS)
