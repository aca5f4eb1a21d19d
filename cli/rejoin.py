"""`perdure rejoin`: a node whose history differs from the primary's becomes its replica."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings


@reporting
def rejoin(
    directory: Directory,
    peer: Peers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which way it would take, and what would be exported.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also give up what was committed only here; it is exported, too."),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Replace log and state by a snapshot, whatever they hold.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="Wait so long until it follows.")
    ] = 600.0,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Make this node a replica of the primary that its peers know, while both run.

    A node does so by itself unless `rejoin` of the section failover is "manual", or unless two primaries have
    committed.
    What only it has is exported to DIR/diverged first. Exit code 1 says that a dry run found it refused.

    \b
    Example:
      perdure rejoin /srv/n1 --peer n2=10.0.0.2:7001 --dry-run
    """
    from ..recovery import plan_rejoin
    from ..recovery import rejoin as rejoin_node
    from ..shipping import Permission

    settings = Settings(directory)
    reach = settings.reach(peer, secret_file)
    budget = settings.value(None, "shipping", "slot_budget_bytes")
    if dry_run:
        report = plan_rejoin(
            directory,
            reach.peers,
            reach.secret,
            slot_budget_bytes=budget,
            permission=Permission(force, anew) if force or anew else None,
            is_automatic=settings.value(None, "failover", "rejoin") == "auto",
        )
    else:
        with render.steps() as on_step:
            report = rejoin_node(
                directory,
                reach.peers,
                reach.secret,
                force=force,
                anew=anew,
                timeout_s=timeout,
                slot_budget_bytes=budget,
                on_step=on_step,
            )
    values = msgspec.to_builtins(report) | {"end": str(report.end)}
    verb = "would" if dry_run else "did"
    render.result(values, as_json=as_json, title=f"{report.node} -> {report.primary}: {verb} {report.way}")
    leave(Exit.FINDINGS if report.way == "refused" else Exit.FINE)
