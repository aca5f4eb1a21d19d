"""The status of a whole cluster, as one node knows it and as the others answer.

Owns how the words of several nodes are put together: this node's own report, what each peer says of
itself, and the primary's word for its replicas. What could not be asked stands in `unknown`, never left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..shipping.messages import StatusReply
from ..shipping.messages_ops import ReportAsk, ReportReply
from ..store.errors import PerdureError, WireError
from .audit import AuditLine, last_recovery
from .behind import behind
from .node_states import node_states
from .ops_service import decoded
from .reach import NOBODY, Reach
from .report import Failover, NodeReport, ReplicaReport, report_node
from .source import Source, open_source
from .sync_state import ClusterSync, Holder, cluster_sync
from .takeovers import Takeover, read_takeovers

Store: TypeAlias = "str | os.PathLike[str]"


class PeerStatus(msgspec.Struct, frozen=True):
    """What a peer says of itself."""

    node: str
    address: str
    reply: StatusReply | None
    """None if it was not heard."""
    problem: str


class ClusterStatus(msgspec.Struct, frozen=True):
    """A cluster as one node sees it."""

    own: NodeReport
    primary: str
    """The node of the highest epoch that says it is the primary; empty if none was heard."""
    epoch: int
    """The highest that was heard of."""
    sync_state: ClusterSync
    replicas: list[ReplicaReport]
    """By the word of the primary; what a peer said itself stands above it."""
    pending_events: int
    total_replicated: int
    """Events of the log that enough replicas have on disk: as many as must confirm a write, or one."""
    failed: int
    """Replicas that are refused or have another history, and peers that were not heard."""
    failovers: int
    """Changes of the primary of which the log still tells."""
    last_failover: Failover | None
    last_recovery: AuditLine | None
    """The newest word of this node's audit file about records that were mended or a state made anew."""
    takeover: Takeover | None
    """The last failover in which this node became primary, with the time that each part of it took."""
    states: dict[str, str]
    """One of the words of node states for each node that is known."""
    peers: list[PeerStatus]
    unknown: list[str]
    """What could not be asked or is not known, a sentence each."""


def cluster_status(store: Store, reach: Reach = NOBODY, *, monitor_host: str = "127.0.0.1") -> ClusterStatus:
    """What is known of the cluster on this node, with every peer in `reach` asked.

    `monitor_host` is where this node's own monitor can be reached. Raises StoreMissingError, FormatError,
    StorageError; UsageError for a secret that is too short.
    """
    source = open_source(store)
    own = report_node(store)
    peers = _ask(source, reach)
    heard = [peer.reply for peer in peers if peer.reply is not None]
    claims = [(reply.end[0], reply.node) for reply in heard if reply.role == "primary"]
    if own.is_primary:
        claims.append((own.epoch, own.node))
    primary = max(claims, default=(0, ""))[1]
    epochs = [own.epoch, own.promise_epoch, *(max(reply.end[0], reply.promise_epoch) for reply in heard)]
    said, problem = _primary_says(source, own, primary, reach)
    replicas: list[ReplicaReport] = []
    expected: list[str] = []
    if said is not None:
        replicas = [_updated(source, said, replica, heard) for replica in said.replicas]
        expected = sorted({*said.expected, *reach.peers, own.node} - {said.node, *said.witnesses})
    known = {replica.node: replica for replica in replicas}
    holders = [
        Holder(node, node in known and known[node].is_connected, node in known and not known[node].lag_events)
        for node in expected
    ]
    state = ClusterSync.UNKNOWN
    if said is not None:
        state = cluster_sync(holders, said.voters_connected, said.sync_replicas)
    return ClusterStatus(
        own=own,
        primary=primary,
        epoch=max(epochs),
        sync_state=state,
        replicas=replicas,
        pending_events=said.pending_events if said else 0,
        total_replicated=_replicated(said, replicas) if said else 0,
        failed=sum(1 for replica in replicas if replica.error and not replica.is_connected)
        + sum(1 for peer in peers if peer.problem and peer.node not in known),
        failovers=len(own.failovers),
        last_failover=own.failovers[-1] if own.failovers else None,
        last_recovery=last_recovery(Path(store)),
        takeover=(read_takeovers(store).newest or (None,))[-1],
        states=node_states(Path(store), own, heard, reach, monitor_host),
        peers=peers,
        unknown=_unknown(own, primary, peers, expected, known, problem),
    )


def _primary_says(
    source: Source, own: NodeReport, primary: str, reach: Reach
) -> tuple[NodeReport | None, str]:
    """(the primary's report, or None; why there is none)"""
    if primary == own.node:
        return own, ""
    if not primary:
        return None, "no primary was heard"
    try:
        with reach.server(primary, source.identity.cluster_id) as server:
            _, data = server.ask(ReportAsk(False), ReportReply, timeout_ms=reach.timeout_ms)
            return decoded(data, NodeReport), ""
    except PerdureError as error:
        return None, f"{primary} cannot be asked: {error.message}"


def _ask(source: Source, reach: Reach) -> list[PeerStatus]:
    cluster_id = source.identity.cluster_id

    def ask(node: str) -> StatusReply:
        with reach.connect(node, cluster_id) as client:
            return client.status()

    found: list[PeerStatus] = []
    for node, answer in reach.ask_all(ask).items():
        host, port = reach.peers[node]
        if isinstance(answer, PerdureError):
            found.append(PeerStatus(node, f"{host}:{port}", None, str(answer)))
            continue
        problem = answer.fault
        if answer.node != node:
            problem = str(WireError(f"{answer.node} answers at this address", node=node))
        found.append(PeerStatus(node, f"{host}:{port}", answer, problem))
    return found


def _updated(
    source: Source, own: NodeReport, replica: ReplicaReport, heard: list[StatusReply]
) -> ReplicaReport:
    """A replica's row, newer where it says itself that it has more: slots are written now and then."""
    said = next((reply for reply in heard if reply.node == replica.node), None)
    if said is None or said.end[0] != own.epoch or said.end[1] <= replica.acked_lsn:
        return replica
    acked = min(said.end[1], own.flushed_lsn)
    lacking = behind(source, acked, own.flushed_lsn)  # of a primary elsewhere, as far as this node's log goes
    age_ms = 0 if not lacking.records else replica.lag_ms
    if lacking.oldest_ms is not None:
        age_ms = max(0, own.now_ms - lacking.oldest_ms)
    return msgspec.structs.replace(
        replica,
        acked_lsn=acked,
        applied_lsn=max(replica.applied_lsn, said.applied_lsn),
        lag_events=lacking.records,
        lag_bytes=lacking.bytes,
        lag_ms=age_ms,
    )


def _replicated(own: NodeReport, replicas: list[ReplicaReport]) -> int:
    """The highest LSN that as many replicas hold as must confirm a write, one at least."""
    held = sorted((replica.acked_lsn for replica in replicas), reverse=True)
    needed = max(1, own.sync_replicas)
    return held[needed - 1] if len(held) >= needed else 0


def _unknown(
    own: NodeReport,
    primary: str,
    peers: list[PeerStatus],
    expected: list[str],
    known: dict[str, ReplicaReport],
    problem: str,
) -> list[str]:
    found = [f"{peer.node} was not heard: {peer.problem}" for peer in peers if peer.reply is None]
    asked = {peer.node for peer in peers}
    silent = [name for name in own.voters if name != own.node and name not in asked]
    if silent:
        found.append(f"{', '.join(silent)} could not be asked: no address is known (--peer NODE=HOST:PORT)")
    if problem:
        found.append(f"replicas and their lag are known to the primary alone, and {problem}")
    found += [f"{node} has never been connected to this primary" for node in expected if node not in known]
    return found
