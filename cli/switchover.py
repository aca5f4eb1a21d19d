"""`perdure switchover` and `perdure failback`: the primary hands over to another node, in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..store import UsageError, read_identity
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings

if TYPE_CHECKING:
    from ..recovery import SwitchoverReport

TimeoutS = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        max=60,
        metavar="SECONDS",
        help="Writers wait so long; then it is undone.",
    ),
]


@reporting
def switchover(
    directory: Directory,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node that takes over.")],
    peer: Peers = None,
    timeout_s: TimeoutS = 10.0,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Hand the primary's role over to NODE, in order: nothing is lost, writers wait for a moment.

    DIR is any node of the cluster, which runs with `perdure node`. It is checked first whether NODE is fit
    and near enough; then writers are held back, NODE gets the rest of the log and takes over, and the old
    primary follows it. Ctrl-C and whatever goes wrong on the way undo it. Exit code 3 says that NODE may not
    take over, and why; 1 that it did, and the checks afterwards found something.

    \b
    Example:
      perdure switchover /srv/n1 n2 --timeout 5
    """
    _hand_over(directory, node, peer, timeout_s, secret_file, as_json)


@reporting
def failback(
    directory: Directory,
    peer: Peers = None,
    timeout_s: TimeoutS = 10.0,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Hand the role back to the preferred primary (`preferred` of the section failover in the configuration).

    As `perdure switchover`; nothing is done where it is primary already.

    \b
    Example:
      perdure failback /srv/n2
    """
    node = Settings(directory).value(None, "failover", "preferred")
    if not node:
        raise UsageError(
            "there is no preferred primary",
            hint="Set preferred in [failover], or `perdure switchover DIR NODE`.",
        )
    _hand_over(directory, node, peer, timeout_s, secret_file, as_json)


def _hand_over(
    directory: Path,
    node: str,
    peer: list[str] | None,
    timeout_s: float,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    from ..recovery import WireNodes, switch_over

    settings = Settings(directory)
    identity = read_identity(directory)
    reach = settings.reach(peer, secret_file)
    addresses = {**reach.peers, identity.node: settings.own_address(directory)}
    with (
        WireNodes(addresses, cluster_id=identity.cluster_id, secret=reach.secret) as nodes,
        render.steps() as on_step,
    ):
        report = switch_over(nodes, node, timeout_ms=round(timeout_s * 1000), on_step=on_step)
    render.result(msgspec.to_builtins(report), as_json=as_json, title=_title(report))
    leave(Exit.FINDINGS if report.problems else Exit.FINE)


def _title(report: SwitchoverReport) -> str:
    if report.was_primary:
        return f"{report.node} is primary of epoch {report.epoch} already"
    return f"{report.node} is primary of epoch {report.epoch}; writers waited {report.pause_ms} ms"
