"""`perdure status`: how a node is, and how far its replicas and peers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..store import PerdureError, read_identity
from . import render
from .exits import Exit, code_of, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings, open_store

if TYPE_CHECKING:
    from ..shipping import Secret, ShippingStatus

OPEN_TIMEOUT_MS = 1000
OPENED = ("sessions", "digest", "voters", "sync_replicas")
"""What only an open store knows."""
WRONG_STATES = ("diverged", "refused")
REPLICA_COLUMNS = ("node", "state", "acked_lsn", "applied_lsn", "lag_events", "lag_ms", "lag_bytes", "error")
PEER_COLUMNS = (
    "node",
    "address",
    "role",
    "epoch",
    "lsn",
    "committed_lsn",
    "applied_lsn",
    "promise",
    "problem",
)


@reporting
def status(
    directory: Directory, peer: Peers = None, secret_file: SecretFile = None, as_json: AsJson = False
) -> None:
    """Say how a node is: role, epoch, sessions, how far its log is, and the lag of each replica.

    With --peer other nodes are asked over the network, too. Exit code 1 says that something is not as it
    should be: a replica that diverged or is refused, a peer that does not answer, a primary whose writes
    nobody confirms.

    \b
    Example:
      perdure status /srv/n1 --peer n2=10.0.0.2:7001 --json
    """
    from ..shipping import shipping_status

    identity = read_identity(directory)
    known = shipping_status(directory)
    is_primary = known.is_primary
    settings = Settings(directory)
    addresses, secret = settings.peers(peer), settings.secret(secret_file)
    opened, code = _opened(directory)
    opened["problem"] = opened["problem"] or _problem(known, opened["sync_replicas"] or 0)
    values: dict[str, Any] = {
        "node": known.node,
        "cluster_id": identity.cluster_id.hex(),
        "backend": identity.backend,
        "role": "primary" if is_primary else "replica",
        "epoch": known.epoch,
        "promise": msgspec.to_builtins(known.promise),
        **opened,
        "appended_lsn": known.appended_lsn,
        "flushed_lsn": known.flushed_lsn,
        "committed_lsn": known.committed_lsn,
        "folded_lsn": known.folded_lsn if known.is_state_shared or not is_primary else None,
        "is_state_shared": known.is_state_shared,
        "pending_events": known.pending_events if is_primary and opened["sync_replicas"] else 0,
        "shipper_pid": known.shipper_pid,
        "voters_connected": known.voters_connected,
        "fault": known.fault,
    }
    replicas = [msgspec.to_builtins(replica) for replica in known.replicas] if is_primary else []
    peers = _ask(addresses, identity.cluster_id, secret)
    _show(values, replicas, peers, as_json)
    is_wrong = bool(opened["problem"]) or any(row["problem"] for row in peers)
    leave(code if code is not Exit.FINE else Exit.FINDINGS if is_wrong else Exit.FINE)


def _opened(directory: Path) -> tuple[dict[str, Any], Exit]:
    """The fields of OPENED; where the store cannot be opened, why not."""
    try:
        with open_store(directory, reads=True, timeout_ms=OPEN_TIMEOUT_MS) as store:
            stats = store.stats()
    except PerdureError as error:
        return dict.fromkeys(OPENED) | {"problem": str(error)}, code_of(error)
    return {name: stats[name] for name in OPENED} | {"problem": ""}, Exit.FINE


def _problem(known: ShippingStatus, sync_replicas: int) -> str:
    """What is not as it should be with this node, empty if nothing."""
    if known.fault:
        return f"folding stopped: {known.fault}"
    if not known.is_primary:
        return ""
    for replica in known.replicas:
        if replica.state in WRONG_STATES:
            return f"replica {replica.node} is {replica.state}: {replica.error}"
    if known.voters_connected < sync_replicas:
        connected = f"{known.voters_connected} of the {sync_replicas} replica(s)"
        return f"{connected} that must confirm a write are connected"
    return ""


def _ask(addresses: Mapping[str, tuple[str, int]], cluster_id: bytes, secret: Secret) -> list[dict[str, Any]]:
    """What each peer says of itself; one that does not answer is a row with its problem."""
    from ..shipping import NodeClient

    rows: list[dict[str, Any]] = []
    for node, (host, port) in addresses.items():
        row: dict[str, Any] = {"node": node, "address": f"{host}:{port}", "problem": ""}
        try:
            with NodeClient(host, port, cluster_id=cluster_id, secret=secret, node=node) as client:
                reply = client.status()
        except PerdureError as error:
            rows.append(row | {"problem": str(error)})
            continue
        epoch, lsn, _ = reply.end
        problem = reply.fault or (f"{reply.node} answers at this address" if reply.node != node else "")
        rows.append(
            row
            | {
                "role": reply.role,
                "epoch": epoch,
                "lsn": lsn,
                "committed_lsn": reply.committed_lsn,
                "applied_lsn": reply.applied_lsn,
                "promise": {"epoch": reply.promise_epoch, "candidate": reply.promise_candidate},
                "primary": reply.primary,
                "primary_heard_ms": reply.primary_heard_ms,
                "voters": list(reply.voters),
                "sync_replicas": reply.sync_replicas,
                "problem": problem,
            }
        )
    return rows


def _show(
    values: dict[str, Any], replicas: list[dict[str, Any]], peers: list[dict[str, Any]], as_json: bool
) -> None:
    if as_json:
        render.write_json({**values, "replicas": replicas, "peers": peers})
        return
    render.result(values, as_json=False)
    for title, rows, columns in (("replicas", replicas, REPLICA_COLUMNS), ("peers", peers, PEER_COLUMNS)):
        if rows:
            print(f"\n{title}")
            render.rows(rows, as_json=False, columns=columns, key=title)
