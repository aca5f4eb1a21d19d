"""What the decision about a rejoin goes by, from a node's own files and from what the other side says.

Owns the way from logs, pages and messages to the facts of rejoin_plan, for the replica and for the primary.
"""

from __future__ import annotations

from ..store import names
from ..store.backends import shares_state
from ..store.control import epoch_start_of
from ..store.cursor import list_segments
from ..store.ids import Position
from ..store.snapshot import list_snapshots
from .bootstrap import log_sizes
from .messages import EPOCHS_MAX, ShipWelcome
from .messages_rejoin import SEGMENTS_TOLD, FactsReply
from .nodelog import NodeLog
from .parted import newest_snapshots, state_lsn
from .permission import read_permission
from .rejoin_plan import PrimaryFacts, ReplicaFacts


def replica_facts(welcome: ShipWelcome) -> ReplicaFacts:
    """What a replica said of itself, as the decision takes it."""
    return ReplicaFacts(
        end=Position(*welcome.end),
        epochs=tuple(welcome.epochs),
        oldest_lsn=welcome.oldest_lsn,
        committed_lsn=welcome.committed_lsn,
        applied_lsn=welcome.applied_lsn,
        sync_replicas=welcome.sync_replicas,
        is_sound=welcome.is_sound,
        was_primary=welcome.was_primary,
        is_state_shared=welcome.is_state_shared,
        snapshots=tuple(welcome.snapshots),
        takes_keys=welcome.takes_keys,
        is_automatic=welcome.is_automatic,
        is_forced=welcome.is_forced,
    )


def has_reigned(node: NodeLog) -> bool:
    """Was this node the primary of the epoch in which its log ends?"""
    header = node.log.cursor.header
    return header is not None and header.primary == node.node


def own_facts(node: NodeLog, *, is_automatic: bool) -> ReplicaFacts:
    """This node as the replica of somebody."""
    told = read_permission(node.store)
    return ReplicaFacts(
        end=node.end_on_disk(),
        epochs=tuple(node.epochs()),
        oldest_lsn=node.oldest_lsn(),
        committed_lsn=node.committed_lsn(),
        applied_lsn=max(node.folded_lsn(), state_lsn(node.store)),
        sync_replicas=node.log.config.sync_replicas,
        is_sound=told is None or not told.is_anew,
        was_primary=has_reigned(node),
        is_state_shared=shares_state(node.identity.backend),
        snapshots=tuple(newest_snapshots(node.store)),
        is_automatic=is_automatic or told is not None,
        is_forced=told is not None and told.is_forced,
    )


def tell_facts(node: NodeLog) -> FactsReply:
    """This node as the primary of somebody, for who asks. Raises as LogCursor.read."""
    return FactsReply(
        node=node.node,
        is_primary=node.log.is_primary,
        end=node.end_on_disk(),
        epochs=node.epochs(),
        oldest_lsn=node.oldest_lsn(),
        segments=log_sizes(node.log.cursor.log)[-SEGMENTS_TOLD:],
        committed_lsn=node.committed_lsn(),
        losses=list(accepted_losses(node))[-EPOCHS_MAX:],
        snapshot_lsn=max((file.lsn for file in list_snapshots(node.store / names.SNAPSHOTS)), default=0),
    )


def primary_facts(told: FactsReply, slot_budget_bytes: int) -> PrimaryFacts:
    """What a primary told, as the decision takes it."""
    return PrimaryFacts(
        end=Position(*told.end),
        epochs=tuple(told.epochs),
        oldest_lsn=told.oldest_lsn,
        segments=tuple(told.segments),
        slot_budget_bytes=slot_budget_bytes,
        committed_lsn=told.committed_lsn,
        snapshot_lsn=told.snapshot_lsn,
        losses=tuple(told.losses),
    )


def accepted_losses(node: NodeLog) -> tuple[tuple[int, int], ...]:
    """(LSN of an EPOCH_START, first LSN that its promotion accepted to lose), of all in a node's log.

    Raises as LogCursor.read.
    """
    found: list[tuple[int, int]] = []
    cursor = node.cursor(is_sparse=False)
    starts = set(node.all_epochs())
    try:
        for file in list_segments(node.log.cursor.log):
            if (file.epoch, file.first_lsn) not in starts:
                continue
            cursor.open_segment(file)
            run = cursor.read(limit_bytes=4096)
            start = epoch_start_of(run.events(*run.frames[0])) if run is not None else None
            if start is not None and start.at_risk_from:
                found.append((file.first_lsn, start.at_risk_from))
    finally:
        cursor.close()
    return tuple(found)
