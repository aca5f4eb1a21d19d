"""`perdure status`: how a node is, and how the cluster stands as it and its peers say."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ..shipping.nodelog import is_running
from ..store import PerdureError, names, read_identity
from . import render
from .exits import Exit, code_of, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings, open_store

if TYPE_CHECKING:
    from ..recovery import ClusterStatus, NodeReport, Reach

OPEN_TIMEOUT_MS = 1000
OPENED = ("sessions", "digest", "voters", "sync_replicas")
"""What only an open store knows."""
WRONG_STATES = ("diverged", "refused")
REPLICA_COLUMNS = (
    "node",
    "state",
    "acked_lsn",
    "applied_lsn",
    "lag_ms",
    "lag_events",
    "lag_bytes",
    "apply_lag_ms",
    "error",
)
PEER_COLUMNS = (
    "node",
    "address",
    "role",
    "state",
    "epoch",
    "lsn",
    "committed_lsn",
    "applied_lsn",
    "promise",
    "problem",
)
TABLES = ("replicas", "peers", "unknown")


@reporting
def status(
    directory: Directory,
    peer: Peers = None,
    secret_file: SecretFile = None,
    watches: Annotated[
        bool, typer.Option("--watch", help="Again and again, until Ctrl-C; with --json a line each time.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=0.05, max=3600, help="Seconds between two looks of --watch.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Say how a node is, and how its cluster stands: roles, epoch, sessions, each replica and its lag.

    Peers (--peer, or those of the configuration) are asked over the network. What could not be asked is said
    under `unknown`. Exit code 1 says that something is not as it should be: a replica that diverged or is
    refused, a peer that does not answer, a primary whose writes nobody confirms.

    \b
    Example:
      perdure status /srv/n1 --peer n2=10.0.0.2:7001 --json
      perdure status /srv/n1 --watch
    """

    settings = Settings(directory)
    reach, host = settings.reach(peer, secret_file), settings.monitor_host()
    if not watches:
        values, code = _look(directory, reach, host)
        _show(values, as_json)
        leave(code)
        return
    with _screen(as_json) as show:
        while True:
            show(_look(directory, reach, host)[0])
            time.sleep(every_s)


def _look(directory: Path, reach: Reach, host: str) -> tuple[dict[str, Any], Exit]:
    """(everything that there is to say, under stable keys; the exit code)"""
    from ..recovery import cluster_status

    identity = read_identity(directory)
    found = cluster_status(directory, reach, monitor_host=host)
    own = found.own
    opened, code = _opened(directory)
    opened["problem"] = opened["problem"] or _problem(own, is_running(directory, names.RECEIVER_LOCK))
    values: dict[str, Any] = {
        "node": own.node,
        "cluster_id": identity.cluster_id.hex(),
        "backend": identity.backend,
        "role": "primary" if own.is_primary else "replica",
        "state": found.states[own.node],
        "epoch": own.epoch,
        "promise": {"epoch": own.promise_epoch, "candidate": own.promise_candidate},
        "primary": found.primary,
        "sync_state": found.sync_state.value,
        **opened,
        "appended_lsn": own.appended_lsn,
        "flushed_lsn": own.flushed_lsn,
        "committed_lsn": own.committed_lsn,
        "folded_lsn": own.folded_lsn,
        "is_state_shared": own.is_state_shared,
        "pending_events": own.pending_events,
        "total_replicated": found.total_replicated,
        "failed": found.failed,
        "failovers": found.failovers,
        "last_failover": msgspec.to_builtins(found.last_failover) if found.last_failover else None,
        "last_takeover": msgspec.to_builtins(found.takeover) | {"recovery_ms": found.takeover.recovery_ms}
        if found.takeover
        else None,
        "last_recovery": msgspec.to_builtins(found.last_recovery) if found.last_recovery else None,
        "shipper_pid": own.shipper_pid,
        "voters_connected": own.voters_connected,
        "fault": own.fault,
        "replicas": [msgspec.to_builtins(replica) for replica in found.replicas],
        "peers": _peers(found),
        "unknown": found.unknown,
    }
    is_wrong = bool(opened["problem"]) or any(row["problem"] for row in values["peers"])
    return values, code if code is not Exit.FINE else Exit.FINDINGS if is_wrong else Exit.FINE


def _opened(directory: Path) -> tuple[dict[str, Any], Exit]:
    """The fields of OPENED; where the store cannot be opened, why not."""
    try:
        with open_store(directory, reads=True, timeout_ms=OPEN_TIMEOUT_MS) as store:
            stats = store.stats()
    except PerdureError as error:
        return dict.fromkeys(OPENED) | {"problem": str(error)}, code_of(error)
    return {name: stats[name] for name in OPENED} | {"problem": ""}, Exit.FINE


def _problem(own: NodeReport, receives: bool) -> str:
    """What is not as it should be with this node, empty if nothing."""
    if own.fault:
        return f"folding stopped: {own.fault}"
    if not own.is_primary:
        return "" if receives else "its receiver does not run: start its node process"
    for replica in own.replicas:
        if replica.state in WRONG_STATES:
            return f"replica {replica.node} is {replica.state}: {replica.error}"
    if own.voters_connected < own.sync_replicas:
        connected = f"{own.voters_connected} of the {own.sync_replicas} replica(s)"
        return f"{connected} that must confirm a write are connected"
    return ""


def _peers(found: ClusterStatus) -> list[dict[str, Any]]:
    """What each peer says of itself; one that does not answer is a row with its problem."""
    rows: list[dict[str, Any]] = []
    for peer in found.peers:
        row: dict[str, Any] = {"node": peer.node, "address": peer.address, "problem": peer.problem}
        row["state"] = found.states.get(peer.node)
        reply = peer.reply
        if reply is not None:
            row |= {
                "role": reply.role,
                "epoch": reply.end[0],
                "lsn": reply.end[1],
                "committed_lsn": reply.committed_lsn,
                "applied_lsn": reply.applied_lsn,
                "promise": {"epoch": reply.promise_epoch, "candidate": reply.promise_candidate},
                "primary": reply.primary,
                "primary_heard_ms": reply.primary_heard_ms,
                "voters": list(reply.voters),
                "sync_replicas": reply.sync_replicas,
            }
        rows.append(row)
    return rows


@contextmanager
def _screen(as_json: bool) -> Generator[render.Show, None, None]:
    """Where --watch shows each look: a line of JSON, or the place of the one before on a terminal."""
    if as_json:
        yield render.write_json
        return
    with render.in_place() as place:
        yield lambda values: place(lambda: _show(values, as_json=False))


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.write_json(values)
        return
    render.result({name: value for name, value in values.items() if name not in TABLES}, as_json=False)
    for title, columns in (("replicas", REPLICA_COLUMNS), ("peers", PEER_COLUMNS)):
        if values[title]:
            print(f"\n{title}")
            render.rows(values[title], as_json=False, columns=columns, key=title)
    if values["unknown"]:
        print("\nnot known")
        for text in values["unknown"]:
            print(f"  {text}")
