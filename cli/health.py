"""`perdure health`, `monitor` and `unmonitor`: how the nodes are, and whose failure counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ..store import PerdureError, UsageError, WireError
from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, SecretFile
from .settings import Settings

if TYPE_CHECKING:
    from ..shipping.messages_health import HealthRow

GOOD = ("alive", "late")
COLUMNS = (
    "node",
    "verdict",
    "state",
    "role",
    "epoch",
    "lsn",
    "hears",
    "silence_ms",
    "failures",
    "last_seen_ms",
    "is_monitored",
    "is_failing",
)
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]


@reporting
def health(directory: Directory, secret_file: SecretFile = None, as_json: AsJson = False) -> None:
    """Say how all nodes are, as the monitor of this one sees them, and what its elector thinks.

    Also how long the last failover took in which this node became primary. Exit code 1 says that a
    monitored node is silent, gone or failing; code 5 that this node does not run. Of a node that was removed
    from the cluster it is said what is left to do.

    \b
    Example:
      perdure health /srv/n1
    """
    from ..recovery import Reach, ask_health, read_takeovers

    settings = Settings(directory)
    reach = Reach(secret=settings.proof(secret_file))
    try:
        said = ask_health(directory, settings.monitor_host(), reach)
    except WireError as error:
        if left := left_over(directory, ()):
            error.hint = " ".join((*left, error.hint))
        raise
    record = read_takeovers(directory)
    last = record.newest[-1] if record.newest else None
    rows: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in said.nodes]
    values: dict[str, Any] = {
        "node": said.nodes[0].node,
        "state": said.nodes[0].state,
        "coordinator": said.coordinator,
        "elector": said.why,
        "takeovers": record.takeovers,
        "failed_candidacies": record.failed,
        "last_recovery_ms": last.recovery_ms if last else None,
    }
    hints = left_over(directory, said.nodes[1:])
    if as_json:
        takeover = None if last is None else msgspec.to_builtins(last) | {"recovery_ms": last.recovery_ms}
        render.write_json({**values, "last_takeover": takeover, "nodes": rows, "hints": hints})
    else:
        render.result(values, as_json=False)
        render.rows(rows, as_json=False, columns=COLUMNS, key="nodes")
        for hint in hints:
            render.note(hint)
    bad = [row for row in said.nodes if row.is_monitored and (row.verdict not in GOOD or row.is_failing)]
    leave(Exit.FINDINGS if bad else Exit.FINE)


def left_over(directory: Path, others: Sequence[HealthRow]) -> list[str]:
    """What is left to do about removed nodes: this one, and those that its monitor still watches."""
    from ..recovery.source import newest_config, open_source

    try:
        source = open_source(directory)
        config = newest_config(source)
    except PerdureError:
        return []  # a damaged log tells nothing of members; that it is damaged is in the rows
    if not config.voters:
        return []  # it has received nothing yet, or is on its own
    members, own = {*config.voters, *config.members}, source.identity.node
    hints = [
        f"{row.node} is no node of the cluster any more (see `perdure member list`). Take it out of "
        "--replica, or of peers in [node], and start this node again"
        + (f"; until then: perdure unmonitor {directory} {row.node}" if row.is_monitored else ".")
        for row in others
        if row.node not in members
    ]
    if own not in config.voters and not any(row.verdict in GOOD for row in others):
        hints.append(
            f"{own} does not vote{', and hears no other node' if others else ''}. If it was removed from the "
            "cluster (see `perdure member list` on another node), "
            f"{'end its processes; ' if others else ''}its directory is not needed any more."
        )
    return hints


@reporting
def monitor(directory: Directory, node: Node, as_json: AsJson = False) -> None:
    """Let a node's failure count again, after `unmonitor`. All nodes hear of it through heartbeats.

    \b
    Example:
      perdure monitor /srv/n1 n2
    """
    _decide(directory, node, True, as_json)


@reporting
def unmonitor(directory: Directory, node: Node, as_json: AsJson = False) -> None:
    """Let a node's failure have no consequence while somebody works on it: nobody is elected in its place.

    Can be said on any node, whether it runs or not; all others hear of it through heartbeats. It stays so
    until `monitor`.

    \b
    Example:
      perdure unmonitor /srv/n1 n2
    """
    _decide(directory, node, False, as_json)


def _decide(directory: Directory, node: str, is_monitored: bool, as_json: bool) -> None:
    from ..recovery import node_names
    from ..shipping import read_unmonitored, set_monitored

    peers = {*Settings(directory).listed(), *read_unmonitored(directory).nodes}
    known = node_names(directory) | peers
    if len(known) > 1 and node not in known:  # a replica that has received nothing yet may know nobody
        raise UsageError(
            f"{node} is no node of this cluster: {', '.join(sorted(known))}",
            hint="A node that was removed is not watched any more.",
        )
    decided = set_monitored(directory, node, is_monitored)
    render.result(
        {"node": node, "is_monitored": is_monitored, "unmonitored": list(decided.nodes)}, as_json=as_json
    )
