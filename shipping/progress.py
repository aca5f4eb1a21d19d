"""Progress: who has acknowledged what, and what is therefore committed. Pure.

Owns the commit rule. The commit LSN is the k-th highest position that voters besides the primary hold
on disk, never above what the primary itself has on disk, and it never goes back. Witnesses hold nothing.
Only acknowledgements by the primary's own chain, at or above the start of its own epoch, move it: a frame
of an earlier epoch that k replicas hold may still be replaced, unless one of the current epoch stands on
it (the case of figure 8 in the Raft paper). Until a CONFIG is committed, what it says and what the one
before it said must both be met.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from ..store.control import Config, Electors
from ..store.ids import Position


class Electorate(msgspec.Struct, frozen=True):
    """Whose acknowledgements count, and from where on."""

    primary: str
    voters: frozenset[str]
    """All nodes that vote, the primary included."""
    sync_replicas: int
    """k: so many voters besides the primary must hold a frame before it is committed."""
    epoch: int
    epoch_start_lsn: int
    """LSN of the primary's own EPOCH_START."""
    witnesses: frozenset[str] = frozenset()
    """Voters whose acknowledgements never count."""
    before: Electors | None = None
    """Those of the CONFIG before, which count as well until `changed_lsn` is committed."""
    changed_lsn: int = 0


def electorate_of(config: Config, primary: str, epoch: int, epoch_start_lsn: int) -> Electorate:
    """The electorate that a log's newest CONFIG makes."""
    return Electorate(
        primary=primary,
        voters=frozenset(config.voters),
        sync_replicas=config.sync_replicas,
        epoch=epoch,
        epoch_start_lsn=epoch_start_lsn,
        witnesses=frozenset(config.witnesses),
        before=config.before,
        changed_lsn=config.changed_lsn,
    )


def commit_lsn(
    electorate: Electorate, acked: Mapping[str, Position], flushed_lsn: int, committed_lsn: int
) -> int:
    """The commit LSN after what is known now.

    `acked` are positions that were found on the primary's own chain, by node; `flushed_lsn` is what the
    primary has on disk; `committed_lsn` what was committed before.
    """
    k = electorate.sync_replicas
    reached = _reached(electorate, electorate.voters, electorate.witnesses, k, acked, flushed_lsn)
    before = electorate.before
    if before is not None and committed_lsn < electorate.changed_lsn:
        # A primary that was no voter before is not among the k + 1 that had each write.
        needed = before.sync_replicas + (electorate.primary not in before.voters)
        met = _reached(electorate, before.voters, before.witnesses, needed, acked, flushed_lsn)
        if min(reached, met) < electorate.changed_lsn:
            reached = min(reached, met)
    if k > 0 and reached < electorate.epoch_start_lsn:
        return committed_lsn
    return max(committed_lsn, reached)


def confirmed_us(electorate: Electorate, echoed: Mapping[str, int], committed_lsn: int) -> int:
    """Up to when it is sure that no later epoch had a primary: 0 if that is not known.

    `echoed` are the times (the primary's monotonic clock, us) of heartbeats that replicas answered while they
    had promised nothing to anybody else. Of any k of them and the primary itself at least one has to promise
    before a later epoch begins. Before its own EPOCH_START is committed a primary does not know all that is.
    """
    if electorate.sync_replicas <= 0 or committed_lsn < electorate.epoch_start_lsn:
        return 0
    reached = _kth_us(echoed, electorate.voters - electorate.witnesses, electorate.sync_replicas, electorate)
    before = electorate.before
    if before is not None and committed_lsn < electorate.changed_lsn:
        needed = before.sync_replicas + (electorate.primary not in before.voters)
        if needed:
            reached = min(reached, _kth_us(echoed, before.data_voters, needed, electorate))
    return reached


def _kth_us(echoed: Mapping[str, int], replicas: Collection[str], k: int, electorate: Electorate) -> int:
    """The k-th newest echo of these replicas besides the primary; 0 if too few are heard."""
    found = [us for node, us in echoed.items() if node in replicas and node != electorate.primary]
    return sorted(found, reverse=True)[k - 1] if len(found) >= k else 0


def _reached(
    electorate: Electorate,
    voters: Collection[str],
    witnesses: Collection[str],
    k: int,
    acked: Mapping[str, Position],
    flushed_lsn: int,
) -> int:
    """The LSN that `k` of these voters have on disk as well as the primary; 0 if too few are heard."""
    if k <= 0:
        return flushed_lsn
    primary, epoch, start_lsn = electorate.primary, electorate.epoch, electorate.epoch_start_lsn
    counted: list[int] = []
    for node, (at_epoch, lsn, _chain) in acked.items():
        is_own = at_epoch == epoch and lsn >= start_lsn
        if is_own and node in voters and node != primary and node not in witnesses:
            counted.append(lsn)
    if len(counted) < k:
        return 0
    counted.sort(reverse=True)
    return min(counted[k - 1], flushed_lsn)


def counts_as_voter(electorate: Electorate, node: str) -> bool:
    """Does this replica's acknowledgement count? Without sync_replicas every replica's does."""
    replicas = electorate.voters - electorate.witnesses - {electorate.primary}
    return electorate.sync_replicas == 0 or node in replicas


def voters_connected(electorate: Electorate, streaming: Iterable[str]) -> int:
    """How many of the replicas that follow closely at the moment are voters."""
    return sum(counts_as_voter(electorate, node) for node in streaming)


class Common(msgspec.Struct, frozen=True):
    """Where two logs last agree, as their epochs tell."""

    epoch: int
    lsn: int


def last_common(
    ours: list[tuple[int, int]], our_end: Position, theirs: list[tuple[int, int]], their_end: Position
) -> Common | None:
    """Where the histories of primary and replica part, None if they share no epoch that is known.

    Each list has (epoch, first LSN) of the epochs in one log, oldest first. One primary an epoch, so two
    logs that both hold frames of an epoch agree on it up to the end of the shorter one (the method of
    KIP-101, leader epochs in Kafka).
    """
    if their_end.lsn == 0:
        return Common(0, 0)
    our_ends = epoch_ends(ours, our_end)
    their_ends = epoch_ends(theirs, their_end)
    shared = [epoch for epoch in their_ends if epoch in our_ends]
    if not shared:
        return None
    epoch = max(shared)
    lsn = min(our_ends[epoch], their_ends[epoch])
    return Common(epoch, lsn)


def epoch_ends(epochs: list[tuple[int, int]], end: Position) -> dict[int, int]:
    """Last LSN of each epoch of a log that ends at `end`; epochs without a frame are left out."""
    ends: dict[int, int] = {}
    for number, (epoch, first_lsn) in enumerate(epochs):
        last = epochs[number + 1][1] - 1 if number + 1 < len(epochs) else end.lsn
        if last >= first_lsn:
            ends[epoch] = last
    if end.lsn:
        ends.setdefault(end.epoch, end.lsn)
    return ends
