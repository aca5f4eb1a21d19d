"""`perdure failover`: take the primary out, or let a given node take over. On any node."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from . import render
from .exits import reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings


@reporting
def failover(
    directory: Directory,
    from_node: Annotated[
        str | None, typer.Option("--from", metavar="NODE", help="The node to be taken out: the primary.")
    ] = None,
    to_node: Annotated[
        str | None, typer.Option("--to", metavar="NODE", help="The node that takes over.")
    ] = None,
    peer: Peers = None,
    accept_data_loss: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss", help="Allow what may lose acknowledged writes; with k = 0 always needed."
        ),
    ] = False,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Take the primary out, so that the furthest other voter takes over, or say who takes over.

    Without --from and --to that is whichever node is primary, healthy or not; --from refuses another one.
    It does not wait for the old primary, which is fenced; for a hand-over in order see `perdure switchover`.
    Returns once the new primary has begun its epoch. Exit code 3 says that it may not, and why.

    \b
    Example:
      perdure failover /srv/n1
      perdure failover /srv/n1 --from n2
      perdure failover /srv/n1 --to n3
    """
    from ..recovery import fail_over

    settings = Settings(directory)
    report = fail_over(
        directory,
        settings.reach(peer, secret_file),
        own_address=settings.own_address(directory),
        from_node=from_node,
        to_node=to_node,
        accept_data_loss=accept_data_loss,
    )
    title = (
        f"{report.node} was primary of epoch {report.epoch} already"
        if report.was_primary
        else f"{report.node} is primary of epoch {report.epoch}"
    )
    render.result(msgspec.to_builtins(report), as_json=as_json, title=title)
