"""Retention: which files of log and snapshots may go, and why each other one stays. A pure decision.

Owns the rule. Snapshots stay while they are among the newest ones, young, the newest good one, or a base:
point-in-time recovery begins at the newest snapshot that is as old as the policy's age, and for each half of
that age behind it one more stays, which will be the next to begin at. Log goes from its oldest end only, a
segment at a time, and only when nothing needs it:

    a segment stays                         because
    --------------------------------------  -------------------------------------------------------
    it is the tail, or not sealed           it is being written
    above the newest good snapshot          the state could not be made again without it
    above the state's position              the state here is not that far yet
    above a slot's position                 that replica would need a snapshot instead
    above where a migration began, or       it could not go on, or would be a rebuild
      where the state before it stands
    above a consumer's progress             that consumer of the event feed would miss events
    younger than the policy's age           point-in-time recovery and outcome() reach back so far
    above the oldest base, or there is no   point-in-time recovery begins there, and needs all log behind it
      base that is as old as that
    an older segment stays                  a log has no holes

A slot, and a migration, holds log until what it holds is over the policy's budget; then the replica catches
up by a snapshot, and the migration begins anew from one. It never holds what the log no longer has, and
never keeps the disk filling without end. So does a consumer, until it is over the budget, or has acknowledged
nothing for the policy's age: one that was forgotten loses its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

BASES: Final = 2
"""So many snapshots a `log_age_ms` stay for point-in-time recovery."""


class SegmentFacts(msgspec.Struct, frozen=True):
    """What retention has to know of a segment."""

    name: str
    first_lsn: int
    last_lsn: int
    size_bytes: int
    closed_ms: int
    """When its last frame was written, at the latest; ms since 1970."""
    is_sealed: bool


class SnapshotFacts(msgspec.Struct, frozen=True):
    """What retention has to know of a snapshot."""

    name: str
    lsn: int
    size_bytes: int
    created_ms: int
    is_good: bool
    """All of it was read and is right, and it belongs to this log."""
    is_bad: bool = False
    """It was looked at, and nobody may rely on it. One that is neither was not looked at."""


class SlotFacts(msgspec.Struct, frozen=True):
    """What retention has to know of a replica."""

    node: str
    lsn: int
    """On its disk."""
    keeps_log: bool
    """False if it is to get a snapshot anyway."""
    snapshot: str = ""
    """File name of the one that it is being sent: `lsn` is that of the snapshot then."""


class HoldFacts(msgspec.Struct, frozen=True):
    """What else on this node needs log."""

    what: str
    lsn: int
    """The log behind it is needed."""


class ConsumerFacts(msgspec.Struct, frozen=True):
    """What retention has to know of a consumer of the event feed."""

    name: str
    lsn: int
    """Acknowledged."""
    acked_ms: int
    """When that was, ms since 1970."""
    damage: str = ""
    """Why its progress cannot be read, so that it cannot go on anyway; empty if it can."""


class Policy(msgspec.Struct, frozen=True):
    """What is to be kept beyond what is needed. Times in ms, sizes in bytes."""

    log_age_ms: int = 24 * 3_600_000
    """Segments whose last frame is younger stay, and what a replay to any moment since then begins with."""
    snapshots: int = 3
    """So many of the newest snapshots stay."""
    snapshot_age_ms: int = 0
    """Snapshots that are younger stay, too."""
    slot_bytes: int = 4 << 30
    """A slot (or a migration) holds at most so much log; its replica gets a snapshot then."""
    consumer_bytes: int = 4 << 30
    """A consumer of the event feed holds at most so much log."""
    consumer_age_ms: int = 7 * 24 * 3_600_000
    """One that has something to read, and has acknowledged nothing for so long, holds nothing."""


class Line(msgspec.Struct, frozen=True):
    """One file, and what becomes of it."""

    kind: str
    """`segment` or `snapshot`."""
    name: str
    size_bytes: int
    is_dropped: bool
    why: str


class Plan(msgspec.Struct, frozen=True):
    """What may go, oldest first, and what stays."""

    drop: tuple[Line, ...]
    keep: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    """Slots, migrations and consumers that hold nothing any more, and why."""
    relies_on: str = ""
    """File name of a snapshot that was not looked at, and has to be before anything is dropped."""

    @property
    def freed_bytes(self) -> int:
        return sum(line.size_bytes for line in self.drop)

    @property
    def lines(self) -> tuple[Line, ...]:
        return self.drop + self.keep


def plan_retention(
    segments: Sequence[SegmentFacts],
    snapshots: Sequence[SnapshotFacts],
    slots: Sequence[SlotFacts],
    policy: Policy,
    *,
    now_ms: int,
    state_lsn: int,
    holds: Sequence[HoldFacts] = (),
    consumers: Sequence[ConsumerFacts] = (),
) -> Plan:
    """Decide what of log and snapshots may go.

    `segments` and `snapshots` are in the order of their LSNs, all that there are; `state_lsn` is what
    the state holds. Dropping any beginning of `Plan.drop` is safe, and so is stopping in the middle.
    """
    good = max((snapshot.lsn for snapshot in snapshots if snapshot.is_good), default=None)
    holding, notes = _holding_slots(segments, slots, policy, good)
    sent = {slot.snapshot: slot.node for slot in holding if slot.snapshot}
    bases = _bases(snapshots, policy, now_ms)
    first = bases[0] if bases and now_ms - bases[0].created_ms >= policy.log_age_ms else None
    kept_snapshots = _judge_snapshots(snapshots, policy, good, now_ms, sent, bases)
    held, more_notes = _holding_others(segments, holds, policy, good)
    notes += more_notes
    reading, consumer_notes = _holding_consumers(segments, consumers, policy, good, now_ms)
    lines: list[Line] = []
    staying = ""
    for number, segment in enumerate(segments):
        why = staying and f"{staying} stays, and a log has no holes"
        is_tail = number == len(segments) - 1
        why = why or _why_kept(segment, is_tail, good, holding, held, reading, policy, now_ms, state_lsn)
        why = why or _why_replayed(segment, first, policy)
        staying = staying or (segment.name if why else "")
        dropped = f"nothing needs it: LSN {segment.last_lsn} is in snapshot, state and replicas, and was read"
        lines.append(Line("segment", segment.name, segment.size_bytes, not why, why or dropped))
    lines = kept_snapshots + lines
    drop = tuple(line for line in lines if line.is_dropped)
    older = {snapshot.name for snapshot in snapshots if first and snapshot.lsn < first.lsn}
    is_relied_on = any(line.kind == "segment" or line.name in older for line in drop)
    return Plan(
        drop,
        tuple(line for line in lines if not line.is_dropped),
        tuple(notes + consumer_notes),
        first.name if first and is_relied_on and not first.is_good else "",
    )


def _bases(snapshots: Sequence[SnapshotFacts], policy: Policy, now_ms: int) -> list[SnapshotFacts]:
    """What point-in-time recovery begins with now or later, oldest first.

    Which ones these are follows from the ones before, so that a snapshot that was one stays one until it
    is too old.
    """
    if not policy.log_age_ms:
        return []
    usable = [snapshot for snapshot in snapshots if not snapshot.is_bad]
    old = [snapshot for snapshot in usable if now_ms - snapshot.created_ms >= policy.log_age_ms]
    bases = old[-1:]
    for snapshot in usable:
        if not bases or snapshot.created_ms - bases[-1].created_ms >= policy.log_age_ms / BASES:
            bases.append(snapshot)
    return bases


def _judge_snapshots(
    snapshots: Sequence[SnapshotFacts],
    policy: Policy,
    good: int | None,
    now_ms: int,
    sent: Mapping[str, str],
    bases: Sequence[SnapshotFacts],
) -> list[Line]:
    names = {snapshot.name for snapshot in bases}
    newest = {snapshot.name for snapshot in snapshots[max(0, len(snapshots) - max(policy.snapshots, 1)) :]}
    lines = []
    for snapshot in snapshots:
        why = ""
        if good is None:
            why = "no snapshot is known to be good, so all stay"
        elif snapshot.lsn == good and snapshot.is_good:
            why = "it is the newest good snapshot"
        elif snapshot.lsn > good:
            known = "is damaged, and" if snapshot.is_bad else "was not looked at, and is"
            why = f"it {known} newer than the newest good one" + (": look at it" if snapshot.is_bad else "")
        elif snapshot.name in newest:
            why = f"it is one of the newest {policy.snapshots}"
        elif snapshot.name in sent:
            why = f"replica {sent[snapshot.name]} is being sent it"
        elif now_ms - snapshot.created_ms < policy.snapshot_age_ms:
            why = f"it is younger than {policy.snapshot_age_ms} ms"
        elif snapshot.name in names:
            why = f"point-in-time recovery, {policy.log_age_ms} ms back, begins with it, or will"
        dropped = f"newer ones stand, good at LSN {good}"
        lines.append(Line("snapshot", snapshot.name, snapshot.size_bytes, not why, why or dropped))
    return lines


def _holding_slots(
    segments: Sequence[SegmentFacts], slots: Sequence[SlotFacts], policy: Policy, good: int | None
) -> tuple[list[SlotFacts], list[str]]:
    """(slots for which log is kept, what is to be said of the others)."""
    holding, notes = [], []
    oldest = segments[0].first_lsn if segments else 1
    for slot in slots:
        needed = sum(segment.size_bytes for segment in segments if segment.last_lsn > slot.lsn)
        if not slot.keeps_log:
            notes.append(f"slot {slot.node} holds nothing: it catches up by a snapshot")
        elif slot.lsn + 1 < oldest:
            notes.append(f"slot {slot.node} holds nothing: the log it needs, LSN {slot.lsn + 1}, is gone")
        elif needed > policy.slot_bytes and good is not None:
            notes.append(
                f"slot {slot.node} holds nothing: it needs {needed} bytes of log, "
                f"over its budget of {policy.slot_bytes}"
            )
        else:
            holding.append(slot)
    return holding, notes


def _holding_others(
    segments: Sequence[SegmentFacts], holds: Sequence[HoldFacts], policy: Policy, good: int | None
) -> tuple[list[HoldFacts], list[str]]:
    """As _holding_slots, for what else needs log."""
    holding, notes = [], []
    oldest = segments[0].first_lsn if segments else 1
    for hold in holds:
        needed = sum(segment.size_bytes for segment in segments if segment.last_lsn > hold.lsn)
        if hold.lsn + 1 < oldest:
            notes.append(f"{hold.what} holds nothing: the log it needs, LSN {hold.lsn + 1}, is gone")
        elif needed > policy.slot_bytes and good is not None:
            notes.append(
                f"{hold.what} holds nothing: it needs {needed} bytes of log, "
                f"over the budget of {policy.slot_bytes}"
            )
        else:
            holding.append(hold)
    return holding, notes


def _holding_consumers(
    segments: Sequence[SegmentFacts],
    consumers: Sequence[ConsumerFacts],
    policy: Policy,
    good: int | None,
    now_ms: int,
) -> tuple[list[ConsumerFacts], list[str]]:
    """(consumers for which log is kept, what is to be said of the others)."""
    holding, notes = [], []
    oldest = segments[0].first_lsn if segments else 1
    for consumer in consumers:
        unread = [segment for segment in segments if segment.last_lsn > consumer.lsn]
        needed = sum(segment.size_bytes for segment in unread)
        # One that had nothing to read has acknowledged nothing either: it is behind only since there was.
        age_ms = now_ms - max([consumer.acked_ms, *(segment.closed_ms for segment in unread[:1])])
        says = f"consumer {consumer.name} holds nothing"
        if consumer.damage:
            notes.append(f"{says}: its progress is damaged ({consumer.damage})")
        elif consumer.lsn + 1 < oldest:
            notes.append(f"{says}: the log it needs, LSN {consumer.lsn + 1}, is gone")
        elif needed > policy.consumer_bytes and good is not None:
            notes.append(
                f"{says}: it needs {needed} bytes of log, over its budget of {policy.consumer_bytes}"
            )
        elif unread and age_ms > policy.consumer_age_ms:
            notes.append(f"{says}: it has read nothing for {age_ms} ms, longer than {policy.consumer_age_ms}")
        else:
            holding.append(consumer)
    return holding, notes


def _why_kept(
    segment: SegmentFacts,
    is_tail: bool,
    good: int | None,
    holding: Sequence[SlotFacts],
    held: Sequence[HoldFacts],
    reading: Sequence[ConsumerFacts],
    policy: Policy,
    now_ms: int,
    state_lsn: int,
) -> str:
    """Why a segment stays, empty if it may go."""
    if is_tail:
        return "it is the tail"
    if not segment.is_sealed:
        return "it is not sealed"
    if good is None:
        return "there is no snapshot that is known to be good"
    if segment.last_lsn > good:
        return f"the newest good snapshot ends at LSN {good}, and needs it"
    if segment.last_lsn > state_lsn:
        return f"the state here is at LSN {state_lsn}, and needs it"
    behind = [slot for slot in holding if slot.lsn < segment.last_lsn]
    if behind:
        slot = min(behind, key=lambda one: one.lsn)
        return f"replica {slot.node} has LSN {slot.lsn} on disk, and needs it"
    if why := _why_held(segment, held, reading):
        return why
    age_ms = now_ms - segment.closed_ms
    if age_ms < policy.log_age_ms:
        return f"it is {max(0, age_ms)} ms old, younger than {policy.log_age_ms} ms"
    return ""


def _why_replayed(segment: SegmentFacts, first: SnapshotFacts | None, policy: Policy) -> str:
    """Why a segment stays for point-in-time recovery, which begins with `first`; empty if it does not."""
    if not policy.log_age_ms:
        return ""
    if first is None:
        return f"no snapshot is {policy.log_age_ms} ms old yet, for point-in-time recovery to begin with"
    if segment.last_lsn > first.lsn:
        return f"point-in-time recovery begins with the snapshot at LSN {first.lsn}, and needs it"
    return ""


def _why_held(segment: SegmentFacts, held: Sequence[HoldFacts], reading: Sequence[ConsumerFacts]) -> str:
    """Why a segment stays for a migration or a consumer, empty if for none."""
    others = [hold for hold in held if hold.lsn < segment.last_lsn]
    if others:
        hold = min(others, key=lambda one: one.lsn)
        return f"{hold.what} begins at LSN {hold.lsn}, and needs it"
    unread = [consumer for consumer in reading if consumer.lsn < segment.last_lsn]
    if unread:
        consumer = min(unread, key=lambda one: one.lsn)
        return f"consumer {consumer.name} has read up to LSN {consumer.lsn}, and needs it"
    return ""
