"""`perdure init`: make a node's directory, and the first primary of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..store import Config, Identity, OpenOptions, UsageError, begin_cluster, init_store, open_store
from . import render
from .exits import reporting
from .options import AsJson, BackendName, Directory


@reporting
def init(
    directory: Directory,
    node: Annotated[str, typer.Option("--node", help="This node's name, for example n1.")],
    cluster_id: Annotated[
        str | None,
        typer.Option("--cluster-id", metavar="HEX", help="The cluster to join, as its first node says."),
    ] = None,
    is_primary: Annotated[
        bool, typer.Option("--primary", help="Make this the first primary of a new cluster.")
    ] = False,
    voter: Annotated[
        list[str] | None, typer.Option("--voter", help="A node that votes, the primary included; repeat it.")
    ] = None,
    sync_replicas: Annotated[
        int, typer.Option("--sync-replicas", min=0, help="How many replicas confirm each write.")
    ] = 0,
    backend: BackendName = "lmdb",
    as_json: AsJson = False,
) -> None:
    """Make a node's directory.

    The first node of a cluster is made with --primary and says the cluster's id; every other one is made with
    that id, and gets its sessions from the primary.

    \b
    Example:
      perdure init /srv/n1 --node n1 --primary \\
          --voter n1 --voter n2 --voter n3 --sync-replicas 1
      perdure init /srv/n2 --node n2 --cluster-id 5f0c...
    """
    config = _config(node, voter or [], sync_replicas, is_primary)
    if not is_primary and cluster_id is None:
        raise UsageError(
            "a node that is not the first primary joins a cluster",
            hint="Give --cluster-id, as the first node says it, or --primary.",
        )
    identity = make_node(directory, node, _cluster_id(cluster_id), backend, config if is_primary else None)
    render.result(
        {
            "directory": str(directory),
            "node": node,
            "cluster_id": identity.cluster_id.hex(),
            "backend": backend,
            "is_primary": is_primary,
            "voters": list(config.voters),
            "sync_replicas": config.sync_replicas,
        },
        as_json=as_json,
    )


def make_node(
    directory: Path, node: str, cluster_id: bytes | None, backend: str, config: Config | None
) -> Identity:
    """Make a node's directory; with a `config` it becomes the first primary of its cluster.

    Raises as init_store and begin_cluster.
    """
    options = OpenOptions(create=False)
    identity = init_store(
        directory, node=node, cluster_id=cluster_id, backend=backend, now_ms=options.wall_ms()
    )
    if config is not None:
        _begin(directory, config, options)
    return identity


def _config(node: str, voters: list[str], sync_replicas: int, is_primary: bool) -> Config:
    """Refuse what the cluster would refuse, before there is a directory."""
    if not is_primary and (voters or sync_replicas):
        raise UsageError(
            "--voter and --sync-replicas are the primary's to say",
            hint="Give them with --primary; a replica reads them in the log.",
        )
    if voters and node not in voters:
        raise UsageError(f"{node} is not among the voters {', '.join(voters)}", hint=f"Add --voter {node}.")
    if sync_replicas > max(0, len(set(voters)) - 1):
        raise UsageError(
            f"--sync-replicas {sync_replicas} needs {sync_replicas} voters besides {node}",
            hint="Name all nodes that vote, the primary included, with --voter.",
        )
    return Config(voters=tuple(voters), sync_replicas=sync_replicas)


def _cluster_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise UsageError(f"{text!r} is no cluster id: 32 hexadecimal characters")
    return raw


def _begin(directory: Path, config: Config, options: OpenOptions) -> None:
    opened = open_store(directory, options)
    try:
        opened.log.lock_any()
        try:
            begin_cluster(opened.log, config)
        finally:
            opened.log.unlock()
    finally:
        opened.close()
