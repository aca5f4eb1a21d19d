"""Words for how replicas stand: of the whole cluster, and of one session. Pure.

Owns the words and when each of them holds. A session's are those of a node's states.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec


class ClusterSync(Enum):
    """How the replicas of a primary stand, as a whole."""

    SYNCED = "synced"
    """Every replica has everything on disk."""
    LAGGING = "lagging"
    """All are connected, and one at least has not everything yet."""
    DEGRADED = "degraded"
    """One at least is away or refused; enough for every write are there."""
    STALLED = "stalled"
    """Fewer voters are connected than must confirm a write: there are no writes."""
    ALONE = "alone"
    """There are no replicas."""
    UNKNOWN = "unknown"
    """The primary could not be asked."""


class SessionSync(Enum):
    """How one session's last change stands. The words are those of node states."""

    INITIALIZING = "initializing"
    """It is in the primary's log, and not on its disk yet."""
    SYNCING = "syncing"
    """It is on the primary's disk; a replica that is connected lacks it, or too few have confirmed it."""
    ACTIVE = "active"
    """Every replica that is to have it has it on disk."""
    FAILOVER = "failover"
    """There is no primary at the moment that could say, or it is not committed and its primary is gone."""
    RECOVERING = "recovering"
    """It is committed; a replica that is away, or being made anew, lacks it."""
    TERMINATING = "terminating"
    """It was removed, and not every replica has that on disk."""


class Holder(msgspec.Struct, frozen=True):
    """What is known of one replica that is to have a change."""

    node: str
    is_connected: bool
    has_it: bool


def cluster_sync(holders: Iterable[Holder], voters_connected: int, sync_replicas: int) -> ClusterSync:
    """The word for a primary's replicas; `has_it` speaks of the end of its log."""
    found = list(holders)
    if voters_connected < sync_replicas:
        return ClusterSync.STALLED
    if not found:
        return ClusterSync.ALONE
    if not all(holder.is_connected for holder in found):
        return ClusterSync.DEGRADED
    return ClusterSync.SYNCED if all(holder.has_it for holder in found) else ClusterSync.LAGGING


def session_sync(
    holders: Iterable[Holder],
    *,
    has_primary: bool,
    is_flushed: bool,
    is_committed: bool,
    is_removed: bool,
) -> SessionSync:
    """The word for one session's last change; `has_it` of each holder speaks of that change."""
    found = list(holders)
    if not has_primary:
        return SessionSync.ACTIVE if is_committed and _all_have(found) else SessionSync.FAILOVER
    if not is_flushed:
        return SessionSync.INITIALIZING
    if is_committed and _all_have(found):
        return SessionSync.ACTIVE
    if is_removed:
        return SessionSync.TERMINATING
    if is_committed and all(holder.has_it or not holder.is_connected for holder in found):
        return SessionSync.RECOVERING
    return SessionSync.SYNCING


def _all_have(holders: list[Holder]) -> bool:
    return all(holder.has_it for holder in holders)
