"""`perdure init`: make a node's directory, and the first primary of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..store import Config, Identity, OpenOptions, UsageError, init_store
from ..store.backends import DEFAULT_BACKEND
from ..store.control import STRICT, auto_sync_replicas, config_problem
from ..store.option import format_address
from ..store.witness import make_witness
from . import render
from .exits import reporting
from .options import AsJson, Backend, Directory, parse_nodes
from .settings import Settings

AUTO = "auto"


@reporting
def init(
    directory: Directory,
    node: Annotated[str | None, typer.Option("--node", help="This node's name, for example n1.")] = None,
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
        str | None,
        typer.Option(
            "--sync-replicas",
            metavar="auto|N",
            help="How many replicas confirm each write; auto, the default, is a majority of the cluster.",
        ),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", help="A voter that keeps promises only, no sessions; repeat it."),
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            "--member", metavar="NODE=HOST:PORT", help="Where a node of the cluster listens; repeat it."
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", help="What a primary does alone: strict refuses writes, available needs a witness."
        ),
    ] = STRICT,
    witness_of: Annotated[
        str | None,
        typer.Option("--witness-of", metavar="HEX", help="Make a witness of that cluster: no sessions."),
    ] = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Make a node's directory.

    The first node of a cluster is made with --primary and says the cluster's id; every other one is made with
    that id, and gets its sessions from the primary. If making the first one was broken off, the same command
    completes it.

    \b
    Example:
      perdure init /srv/n1 --node n1 --primary \\
          --voter n1 --voter n2 --voter n3
      perdure init /srv/n2 --node n2 --cluster-id 5f0c...
      perdure init /srv/w --node w --witness-of 5f0c...
    """
    settings = Settings(directory)
    node = str(settings.needed(node, "node", "name", "--node NAME"))
    if witness_of is not None:
        if is_primary or cluster_id is not None:
            raise UsageError("a witness is neither primary nor replica", hint="Give --witness-of alone.")
        _check_replica(voter, sync_replicas, witness, member, backend)
        _init_witness(directory, node, witness_of, as_json)
        return
    kept_in: str = settings.value(backend, "store", "backend") or DEFAULT_BACKEND
    if is_primary:  # of the others it is in the log
        config = _config(
            node,
            settings.value(voter, "node", "voters") or [],
            settings.value(witness, "node", "witnesses") or [],
            str(settings.value(sync_replicas, "node", "sync_replicas")),
            parse_nodes(member or []),
            policy,
        )
    else:
        _check_replica(voter, sync_replicas, witness, member)
        config = Config()
    if not is_primary and cluster_id is None:
        raise UsageError(
            "a node that is not the first primary joins a cluster",
            hint="Give --cluster-id, as the first node says it, or --primary.",
        )
    identity = make_node(directory, node, _cluster_id(cluster_id), kept_in, config if is_primary else None)
    render.result(
        {
            "directory": str(directory),
            "node": node,
            "cluster_id": identity.cluster_id.hex(),
            "backend": kept_in,
            "is_primary": is_primary,
            "voters": list(config.voters),
            "witnesses": list(config.witnesses),
            "sync_replicas": config.sync_replicas,
            "is_auto": config.is_auto,
        },
        as_json=as_json,
    )


def _init_witness(directory: Path, node: str, cluster_id: str, as_json: bool) -> None:
    state = make_witness(directory, node, _cluster_id(cluster_id) or b"", OpenOptions().wall_ms())
    render.result(
        {"directory": str(directory), "node": node, "cluster_id": state.cluster_id.hex(), "is_witness": True},
        as_json=as_json,
    )


def make_node(
    directory: Path, node: str, cluster_id: bytes | None, backend: str, config: Config | None
) -> Identity:
    """Make a node's directory; with a `config` it becomes the first primary of its cluster.

    What the same call began, and was killed, it completes. Raises as init_store and begin_cluster.
    """
    options = OpenOptions(create=False)
    now_ms = options.wall_ms()
    if config is None:
        return init_store(directory, node=node, cluster_id=cluster_id, backend=backend, now_ms=now_ms)
    from ..recovery.beginning import begin_first, go_on_beginning

    begun = go_on_beginning(directory, node, cluster_id, backend, config, options)
    if begun is not None:
        return begun
    identity = init_store(
        directory, node=node, cluster_id=cluster_id, backend=backend, now_ms=now_ms, is_first=True
    )
    begin_first(directory, config, options)
    return identity


def _check_replica(*given: object) -> None:
    if any(given):
        raise UsageError(
            "voters, members, witnesses and sync_replicas are the primary's to say",
            hint="Give them with --primary; other nodes read them in the log.",
        )


def _config(
    node: str,
    voters: list[str],
    witnesses: list[str],
    sync_replicas: str,
    members: dict[str, tuple[str, int]],
    policy: str,
) -> Config:
    """Refuse what the cluster would refuse, before there is a directory."""
    everyone = tuple(dict.fromkeys((*voters, *witnesses)))
    config = Config(
        voters=everyone,
        sync_replicas=parse_sync_replicas(sync_replicas, everyone, witnesses),
        members={name: format_address(*address) for name, address in members.items()},
        witnesses=tuple(dict.fromkeys(witnesses)),
        is_auto=sync_replicas == AUTO,
        policy=policy,
    )
    problem = config_problem(config, node)
    if problem:
        raise UsageError(
            problem, hint="Name all nodes that vote, the primary included, with --voter or --witness."
        )
    if policy != STRICT and not witnesses:
        raise UsageError(
            f"the policy {policy} needs a witness", hint="Name it with --witness; see docs/failover.md."
        )
    return config


def parse_sync_replicas(text: str, voters: Sequence[str], witnesses: Sequence[str]) -> int:
    """k as a command line says it, a number or auto. Raises UsageError."""
    if text == AUTO:
        return auto_sync_replicas(voters, witnesses)
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{text!r} is no number of replicas", hint="Give a number, or auto.")
    return int(text)


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
