"""`perdure member`: who belongs to a cluster, and changing that while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..store.option import format_address
from . import render
from .exits import reporting
from .init import AUTO, parse_sync_replicas
from .options import AsJson, Directory, Peers, SecretFile, parse_nodes
from .settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from ..recovery import Members, Membership

group = typer.Typer(
    help="The nodes of a cluster: list, add, remove, and what they must confirm. On any node.",
    no_args_is_help=True,
)
Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's name.")]
Place = Annotated[
    str, typer.Argument(metavar="NODE=HOST:PORT", help="A node's name and where its receiver listens.")
]


@group.command("list")
@reporting
def list_nodes(directory: Directory, as_json: AsJson = False) -> None:
    """Show who votes, who keeps a copy, and how many replicas confirm each write, as this node's log says.

    \b
    Example:
      perdure member list /srv/n1
    """
    from ..recovery import list_members

    _show(list_members(directory), as_json)


@group.command("add")
@reporting
def add(
    directory: Directory,
    node: Place,
    is_witness: Annotated[
        bool, typer.Option("--witness", help="It keeps promises only, no sessions: see `perdure witness`.")
    ] = False,
    no_vote: Annotated[
        bool, typer.Option("--no-vote", help="It keeps a copy, and neither votes nor confirms writes.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="Wait so long until it follows.")
    ] = 600.0,
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Add a node to the cluster while it runs. DIR is any node of it: the primary is asked.

    The node gets the sessions first; once it follows closely it votes, and confirms writes. Make it with
    `perdure init DIR --node NODE --cluster-id HEX` and start it with `perdure node`. For a node that is a
    member already the address is changed. A store that was on its own becomes the primary of a cluster.

    \b
    Example:
      perdure member add /srv/n1 n4=10.0.0.4:7001
    """
    ((name, address),) = parse_nodes([node]).items()
    with _members(directory, peer, secret_file) as members:
        if is_witness:
            found = members.add_witness(name, format_address(*address))
            _show(found, as_json)
            return
        with render.steps() as on_step:
            found = members.add(
                name,
                format_address(*address),
                votes=not no_vote,
                timeout_ms=int(timeout * 1000),
                on_step=on_step,
            )
    _show(found, as_json)


@group.command("remove")
@reporting
def remove(
    directory: Directory,
    node: Node,
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a node out of the cluster; no log is kept for it any more. On any node, as `perdure member add`.

    The primary can't be taken out: hand over first, with `perdure switchover`.

    \b
    Example:
      perdure member remove /srv/n1 n4
    """
    with _members(directory, peer, secret_file) as members:
        _show(members.remove(node), as_json)


@group.command("set-sync")
@reporting
def set_sync(
    directory: Directory,
    sync_replicas: Annotated[
        str, typer.Argument(metavar="auto|N", help="How many replicas confirm each write.")
    ],
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Change how many replicas confirm each write; auto follows the size of the cluster.

    \b
    Example:
      perdure member set-sync /srv/n1 2
    """
    k = None if sync_replicas == AUTO else parse_sync_replicas(sync_replicas, (), ())
    with _members(directory, peer, secret_file) as members:
        _show(members.set_sync_replicas(k), as_json)


@group.command("set-policy")
@reporting
def set_policy(
    directory: Directory,
    policy: Annotated[str, typer.Argument(metavar="strict|available", help="What a primary does alone.")],
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a primary does that is left by its replicas: refuse writes, or go on where that is recorded.

    \b
    Example:
      perdure member set-policy /srv/n1 available
    """
    with _members(directory, peer, secret_file) as members:
        _show(members.set_policy(policy), as_json)


def _members(directory: Path, peer: list[str] | None, secret_file: Path | None) -> Members:
    """The cluster's members, by the primary wherever it is."""
    from ..recovery import Members

    return Members(directory, Settings(directory).reach(peer, secret_file))


def _show(found: Membership, as_json: bool) -> None:
    values = msgspec.to_builtins(found)
    if found.streaming is None and not as_json:
        values["streaming"] = "only the primary knows"
    render.result(values, as_json=as_json)
