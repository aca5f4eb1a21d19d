"""How a replica whose log is not simply behind gets back into the primary's history. Pure.

Owns the decision: values in, one of five outcomes out. What the epochs tell is checked by chain where the
outcome is carried out. The rule, for a replica whose log ends at `end` and has its last position in common
with the primary's at the fork:

    | the replica                                        | outcome                                        |
    |----------------------------------------------------|------------------------------------------------|
    | has nothing behind the fork                        | Follow; Bootstrap if the log is gone, or more  |
    |                                                    | than its budget is missing, and a snapshot is  |
    |                                                    | further                                        |
    | k >= 1, and something behind the fork is committed | Refuse: two primaries have committed; unless a |
    |                                                    | promotion accepted that loss, or it is forced  |
    | rejoins by command only                            | Refuse, until it is told to                    |
    | has more epochs of its own than it tells, so that  | Refuse, unless it is forced                    |
    | no fork is known, and k >= 1                       |                                                |
    | its log is not to be trusted                       | Bootstrap                                      |
    | no fork is known, or either log begins behind it   | Bootstrap                                      |
    | its state is not beyond the fork, or can be made   | Truncate                                       |
    | anew from a snapshot that is not                   |                                                |
    | its state is beyond the fork (k = 0, or the loss   | TakeKeys; Bootstrap if that would be too much, |
    | is accepted)                                       | or the primary's state cannot be at the fork   |

Invariant: an outcome that takes something off a log names the fork, and nothing that a majority confirmed
stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, TypeAlias

import msgspec

from ..store.ids import Position
from .progress import Common, last_common

KEYS_LOG_BYTES_MAX: Final = 160 << 20
"""Log behind the fork, on either side, up to which touched keys are taken one by one; above, a snapshot.
Whole segments count, so that it is well above two of them."""
OVER_BUDGET: Final = "it lacks more log than its budget"


class ReplicaFacts(msgspec.Struct, frozen=True):
    """What a replica says of itself."""

    end: Position
    epochs: tuple[tuple[int, int], ...]
    """(epoch, first LSN) of the epochs in its log, oldest first; perhaps only of the newest ones."""
    oldest_lsn: int
    """First LSN in its log, 0 if that is empty."""
    committed_lsn: int
    applied_lsn: int
    """What its state holds."""
    sync_replicas: int
    """By the newest CONFIG in its own log: did a commit there need other nodes?"""
    is_sound: bool = True
    """False if its log or state is not to be built on."""
    was_primary: bool = False
    """Of the epoch in which its log ends: it may have what nobody else has."""
    is_state_shared: bool = True
    """False if each process makes its state from snapshot and log, so that none is ever beyond the log."""
    snapshots: tuple[int, ...] = ()
    """LSNs of its snapshots."""
    takes_keys: bool = True
    """False if it has found that the keys which its state has from behind the fork cannot be taken."""
    is_automatic: bool = True
    """False if it takes nothing off its log before it is told to."""
    is_forced: bool = False
    """It was told to rejoin although what is committed there is not in the primary's history."""


class PrimaryFacts(msgspec.Struct, frozen=True):
    """What the primary knows of itself."""

    end: Position
    epochs: tuple[tuple[int, int], ...]
    oldest_lsn: int
    segments: tuple[tuple[int, int], ...]
    """(first LSN, bytes) of the segments of its log, oldest first."""
    slot_budget_bytes: int
    """A replica that lacks more log than this gets a snapshot, if there is one that is further."""
    committed_lsn: int
    """What its state may hold: in a new epoch perhaps less than the fork, until another node confirms it."""
    snapshot_lsn: int = 0
    """Where its newest snapshot stands; 0 if there is none, or none is needed."""
    losses: tuple[tuple[int, int], ...] = ()
    """(LSN of an EPOCH_START, first LSN of the history before it that its promotion accepted to lose)."""


class Follow(msgspec.Struct, frozen=True, tag=True):
    """Frames follow the replica's end."""

    after: Position


class Truncate(msgspec.Struct, frozen=True, tag=True):
    """The replica's log ends at the fork from now on; frames follow."""

    fork: Common


class TakeKeys(msgspec.Struct, frozen=True, tag=True):
    """The log ends at the fork, and what the state has from behind it is taken from the primary."""

    fork: Common


class Bootstrap(msgspec.Struct, frozen=True, tag=True):
    """A snapshot replaces log and state."""

    fork: Common | None
    """None if nothing behind the replica's log is known to have parted, or it is not known where."""
    has_parted: bool
    """The replica has what the primary has not."""
    why: str


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """Nothing is taken from the replica."""

    fork: Common | None
    why: str
    is_fault: bool
    """Two primaries have committed, or one position has two histories: a person has to look."""


Outcome: TypeAlias = "Follow | Truncate | TakeKeys | Bootstrap | Refuse"

COMMAND: Final = "`perdure rejoin DIR` on the replica makes it a replica of this primary."

COMMAND_FORCED: Final = (
    "`perdure rejoin DIR --force` there exports its log and makes it a replica of this primary."
)


def decide_rejoin(replica: ReplicaFacts, primary: PrimaryFacts) -> Outcome:
    """The way for this replica. Whether its end is the primary's by chain is still to be looked at."""
    fork = last_common(list(primary.epochs), primary.end, list(replica.epochs), replica.end)
    if fork is not None and fork.lsn == replica.end.lsn and replica.is_sound:
        return _decide_behind(replica, primary)
    if fork is None and replica.end.lsn + 1 < primary.oldest_lsn and replica.is_sound:
        # Too far behind to be compared: what only an old primary can have is kept as if it had parted.
        return Bootstrap(None, replica.was_primary, _gone(primary))
    if (
        fork is None
        and primary.epochs
        and _is_cut_short(primary)
        and replica.end.epoch < primary.epochs[0][0]
    ):
        newest = f"the newest {len(primary.epochs)} of the primary"
        why = f"its log ends in epoch {replica.end.epoch}, before {newest}"
        return Bootstrap(None, replica.was_primary, why)
    if (refusal := _refuse_parted(replica, primary, fork)) is not None:
        return refusal
    has_parted = replica.end.lsn > 0 and (fork is None or fork.lsn < replica.end.lsn)
    if not replica.is_sound:
        return Bootstrap(fork, has_parted, "its log or state is not to be built on")
    if fork is None:
        return Bootstrap(None, True, "the two logs have no epoch in common")
    return _decide_parted(replica, primary, fork)


def _decide_behind(replica: ReplicaFacts, primary: PrimaryFacts) -> Outcome:
    if replica.end.lsn + 1 < primary.oldest_lsn:
        return Bootstrap(None, False, _gone(primary))
    if _is_over_budget(primary, replica.end.lsn):
        return Bootstrap(None, False, OVER_BUDGET)
    return Follow(replica.end)


def _refuse_parted(replica: ReplicaFacts, primary: PrimaryFacts, fork: Common | None) -> Refuse | None:
    """Why nothing may be taken from a replica that has what the primary has not, None if it may."""
    lsn = fork.lsn if fork is not None else max(replica.oldest_lsn - 1, 0)
    kept = max(replica.committed_lsn, replica.applied_lsn)
    is_accepted = replica.is_forced or any(start > lsn >= first - 1 for start, first in primary.losses)
    if replica.sync_replicas > 0 and kept > lsn and not is_accepted:
        if fork is None and _is_cut_short(replica):
            told = f"none of the newest {len(replica.epochs)} epochs of its log is in this one"
            return Refuse(None, f"{told}: where the two part is not known. {COMMAND_FORCED}", False)
        what = f"LSN {kept} is committed there, and the two logs part behind LSN {lsn}"
        return Refuse(fork, f"two primaries have committed: {what}", True)
    if not replica.is_automatic:
        where = f"behind {fork.epoch}:{fork.lsn}" if fork is not None else "altogether"
        return Refuse(
            fork, f"its log ends at {replica.end}, and parts from this one {where}. {COMMAND}", False
        )
    return None


def _decide_parted(replica: ReplicaFacts, primary: PrimaryFacts, fork: Common) -> Outcome:
    if fork.lsn + 1 < primary.oldest_lsn:
        return Bootstrap(fork, True, _gone(primary))
    if fork.lsn < max(replica.oldest_lsn, 1):
        return Bootstrap(fork, True, f"its own log begins with LSN {replica.oldest_lsn}")
    if _is_over_budget(primary, fork.lsn):
        return Bootstrap(fork, True, OVER_BUDGET)
    if replica.applied_lsn <= fork.lsn:
        return Truncate(fork)
    if not replica.is_state_shared:
        if replica.oldest_lsn == 1 or any(
            replica.oldest_lsn <= lsn + 1 <= fork.lsn + 1 for lsn in replica.snapshots
        ):
            return Truncate(fork)
        return Bootstrap(fork, True, "it has no snapshot from before its log parted")
    why = _why_no_keys(replica, primary, fork)
    return Bootstrap(fork, True, why) if why else TakeKeys(fork)


def _why_no_keys(replica: ReplicaFacts, primary: PrimaryFacts, fork: Common) -> str:
    """Why touched keys cannot be taken one by one; empty if they can."""
    if primary.committed_lsn < fork.lsn:
        # Its state cannot get there, perhaps not before this very replica confirms the new epoch.
        return "the primary does not know yet that the fork is committed"
    if not replica.takes_keys:
        return "the keys that it changed cannot be taken one by one"
    if bytes_behind(primary.segments, fork.lsn) > KEYS_LOG_BYTES_MAX:
        return "too much was written since to take the changed keys one by one"
    return ""


def bytes_behind(segments: Sequence[tuple[int, int]], lsn: int) -> int:
    """About how many bytes of log, in whole segments, stand behind an LSN."""
    ends = [first for first, _ in segments[1:]]
    return sum(size for (_, size), end in zip_longest(segments, ends) if end is None or end > lsn + 1)


def _is_cut_short(facts: ReplicaFacts | PrimaryFacts) -> bool:
    """Does its log hold older epochs than those that are told of it?"""
    return bool(facts.epochs) and facts.epochs[0][1] > facts.oldest_lsn


def _is_over_budget(primary: PrimaryFacts, lsn: int) -> bool:
    """Never for a snapshot that is no further: behind that it would be over its budget again, for ever."""
    return primary.snapshot_lsn > lsn and bytes_behind(primary.segments, lsn) > primary.slot_budget_bytes


def _gone(primary: PrimaryFacts) -> str:
    return f"the primary's log begins with LSN {primary.oldest_lsn}"
