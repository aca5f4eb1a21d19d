"""Waiting for a node or a cluster to get into a state: ready, synced, failed over, recovered.

Owns when each of them is reached. Everything is looked at again and again, at most POLL_S apart, until a
deadline; nothing is changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from ..shipping.nodelog import is_running
from ..store import names
from ..store.errors import StoreMissingError
from .cluster_status import ClusterStatus, cluster_status
from .reach import NOBODY, Reach
from .report import NodeReport, report_node
from .sync_state import ClusterSync

POLL_S: Final = 0.05
Store: TypeAlias = "str | os.PathLike[str]"


class Target(Enum):
    """What can be waited for."""

    READY = "ready"
    """This node does its work: a primary has its shipper and enough replicas, a replica has folded all that
    is committed, and no fault is recorded."""
    SYNCED = "synced"
    """Every replica of this primary has everything on disk."""
    FAILOVER = "failover"
    """Another epoch than at first is served by a primary, and committed."""
    RECOVERED = "recovered"
    """Every voter is there, has everything on disk and in its state."""


class Waited(msgspec.Struct, frozen=True):
    """How a wait ended."""

    target: str
    is_reached: bool
    elapsed_ms: int
    node: str
    primary: str
    epoch: int
    why: str
    """What was missing when the time was up; empty if it was reached."""


def wait_for(
    store: Store,
    target: Target,
    reach: Reach = NOBODY,
    *,
    timeout_ms: int,
    from_epoch: int | None = None,
    on_look: Callable[[str], object] | None = None,
) -> Waited:
    """Wait until the node in `store`, or its cluster, is what `target` says, at most `timeout_ms`.

    For FAILOVER, `from_epoch` is the epoch to be left behind; None takes that of the first look. `on_look`
    is told what is missing. Raises FormatError, StorageError, UsageError; a store that nobody has opened yet
    is waited for.
    """
    started = time.monotonic()
    while True:
        status: ClusterStatus | None = None
        try:
            own, status, why = _look(store, target, reach, from_epoch)
            if from_epoch is None:
                from_epoch = status.epoch if status else own.epoch
        except StoreMissingError as error:
            own, why = None, error.message
        elapsed_s = time.monotonic() - started
        if not why or elapsed_s * 1000 >= timeout_ms:
            return Waited(
                target=target.value,
                is_reached=not why,
                elapsed_ms=round(elapsed_s * 1000),
                node=own.node if own else "",
                primary=status.primary if status else (own.primary if own else ""),
                epoch=status.epoch if status else (own.epoch if own else 0),
                why=why,
            )
        if on_look is not None:
            on_look(why)
        time.sleep(min(POLL_S, max(0.0, timeout_ms / 1000 - elapsed_s)))


def _look(
    store: Store, target: Target, reach: Reach, from_epoch: int | None
) -> tuple[NodeReport, ClusterStatus | None, str]:
    if target is Target.READY:
        own = report_node(store, is_brief=True)
        receives = is_running(Path(store), names.RECEIVER_LOCK)
        return own, None, why_not_ready(own, has_peers=bool(reach.peers), receives=receives)
    status = cluster_status(store, reach)
    if target is Target.SYNCED:
        return status.own, status, why_not_synced(status)
    if target is Target.FAILOVER:
        return status.own, status, why_not_failed_over(status, from_epoch)
    return status.own, status, why_not_recovered(status)


def why_not_ready(own: NodeReport, *, has_peers: bool, receives: bool = True) -> str:
    """What this node still lacks to do its work; empty if nothing. Pure."""
    if own.fault:
        return f"folding stopped: {own.fault}"
    if own.is_primary:
        if own.voters_connected < own.sync_replicas:
            return f"{own.voters_connected} of {own.sync_replicas} replicas that must confirm are connected"
        if (len(own.voters) > 1 or has_peers) and not own.shipper_pid:
            return "no shipper runs"
        return ""
    if not receives:
        return "its receiver does not run"
    if not own.appended_lsn:
        return "nothing was received from a primary yet"
    reached = own.folded_lsn or 0
    committed = min(own.committed_lsn, own.flushed_lsn)
    if reached < committed:
        return f"the state stands at LSN {reached}, {committed} is committed"
    return ""


def why_not_synced(status: ClusterStatus) -> str:
    """What replicas lack; empty if nothing. Pure."""
    if status.sync_state in (ClusterSync.SYNCED, ClusterSync.ALONE):
        return ""
    if status.sync_state is ClusterSync.UNKNOWN:
        return "; ".join(status.unknown) or "this node is not the primary"
    behind = [
        f"{replica.node} ({replica.state}) lacks {replica.lag_events} events"
        for replica in status.replicas
        if replica.lag_events or not replica.is_connected
    ]
    return "; ".join(behind) or f"the cluster is {status.sync_state.value}"


def why_not_failed_over(status: ClusterStatus, from_epoch: int | None) -> str:
    """What is missing to a new primary that serves; empty if nothing. Pure."""
    serving = _serving_epoch(status)
    if from_epoch is None or serving <= from_epoch:
        return f"no primary of an epoch above {status.epoch if from_epoch is None else from_epoch} serves"
    return ""


def why_not_recovered(status: ClusterStatus) -> str:
    """What is missing until every voter is there with everything; empty if nothing. Pure."""
    if not status.primary:
        return "no primary was heard"
    unheard = [peer.node for peer in status.peers if peer.problem]
    if unheard:
        return f"{', '.join(unheard)} not heard, or at fault"
    if status.own.fault:
        return f"folding stopped: {status.own.fault}"
    if status.sync_state is not ClusterSync.UNKNOWN:
        if why := why_not_synced(status):
            return why
        late = [replica.node for replica in status.replicas if replica.apply_lag_events]
        return f"{', '.join(late)} has not folded everything" if late else ""
    return _why_others_are_behind(status)


def _why_others_are_behind(status: ClusterStatus) -> str:
    """On a replica: have all that were asked the end of the primary's log, folded?"""
    replies = {peer.node: peer.reply for peer in status.peers if peer.reply is not None}
    asked = {*replies, status.own.node}
    missing = [name for name in status.own.voters if name not in {*asked, *status.own.witnesses}]
    if missing:
        return f"{', '.join(missing)} could not be asked"
    leader = replies.get(status.primary)
    if leader is None:
        return "the primary could not be asked"
    end, committed = leader.end, leader.committed_lsn or leader.end[1]
    late = [node for node, reply in replies.items() if reply.end[:2] < end[:2]]
    late += [
        node
        for node, reply in replies.items()
        if node not in (status.primary, *late) and reply.applied_lsn < committed
    ]
    own = status.own
    if own.flushed_lsn < end[1] or (own.folded_lsn or 0) < committed:
        late.append(own.node)
    return f"{', '.join(sorted(late))} lacks what the primary has" if late else ""


def _serving_epoch(status: ClusterStatus) -> int:
    """The highest epoch whose primary was heard, and has committed something of its own; 0 if none."""
    replies = [peer.reply for peer in status.peers if peer.reply is not None]
    found = [
        reply.end[0]
        for reply in replies
        # where its epoch begins is not told: what is committed up to the end holds it
        if reply.role == "primary" and (not reply.sync_replicas or reply.committed_lsn >= reply.end[1])
    ]
    own = status.own
    if own.is_primary and own.committed_lsn >= own.epoch_lsn:
        found.append(own.epoch)
    return max(found, default=0)
