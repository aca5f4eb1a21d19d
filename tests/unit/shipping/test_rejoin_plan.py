"""How a replica gets back: every row of the decision, and the fork held against histories made at random."""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest

from perdure.shipping.progress import Common
from perdure.shipping.rejoin_plan import (
    KEYS_LOG_BYTES_MAX,
    Bootstrap,
    Follow,
    Outcome,
    PrimaryFacts,
    Refuse,
    ReplicaFacts,
    TakeKeys,
    Truncate,
    bytes_behind,
    decide_rejoin,
)
from perdure.store import Position

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)

# The primary: epoch 1 up to LSN 100, epoch 3 from 101 to 150.
PRIMARY = PrimaryFacts(
    end=Position(3, 150, 7),
    epochs=((1, 1), (3, 101)),
    oldest_lsn=1,
    segments=((1, 1000), (101, 1000)),
    slot_budget_bytes=10_000,
    committed_lsn=150,
)
# An old primary: epoch 1 up to LSN 120.
REPLICA = ReplicaFacts(
    end=Position(1, 120, 5),
    epochs=((1, 1),),
    oldest_lsn=1,
    committed_lsn=0,
    applied_lsn=0,
    sync_replicas=0,
)
FORK = Common(1, 100)


def replica(**changes: Any) -> ReplicaFacts:
    return msgspec.structs.replace(REPLICA, **changes)


def primary(**changes: Any) -> PrimaryFacts:
    return msgspec.structs.replace(PRIMARY, **changes)


BEHIND = {"end": Position(1, 90, 5)}
EMPTY = {"end": Position(0, 0, 0), "epochs": (), "oldest_lsn": 0}
STRANGER = {"end": Position(2, 120, 5), "epochs": ((2, 80),), "oldest_lsn": 80}
FULL = {"slot_budget_bytes": 500, "snapshot_lsn": 130}
LATE = {"oldest_lsn": 110, "epochs": ((3, 110),), "segments": ((110, 1000),)}
OWN = {"is_state_shared": False, "applied_lsn": 120}
NAMES = {Follow: "follow", Truncate: "truncate", TakeKeys: "keys", Bootstrap: "bootstrap", Refuse: "refuse"}


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        # Nothing stands behind the fork.
        (BEHIND, {}, "follow"),
        ({"end": Position(1, 100, 5)}, {}, "follow"),
        (EMPTY, {}, "follow"),
        ({"end": Position(3, 150, 7), "epochs": ((1, 1), (3, 101))}, {}, "follow"),
        (BEHIND | {"committed_lsn": 90, "applied_lsn": 90, "sync_replicas": 1}, {}, "follow"),
        (BEHIND | {"is_automatic": False}, {}, "follow"),
        (BEHIND, FULL, "bootstrap"),
        (BEHIND, FULL | {"snapshot_lsn": 91}, "bootstrap"),
        (BEHIND, FULL | {"snapshot_lsn": 90}, "follow"),  # it would lack as much again
        (BEHIND, FULL | {"snapshot_lsn": 0}, "follow"),
        ({}, FULL | {"snapshot_lsn": 100}, "truncate"),
        (BEHIND, LATE, "bootstrap"),
        (EMPTY, LATE, "bootstrap"),
        (BEHIND | {"is_automatic": False}, LATE, "bootstrap"),
        (BEHIND | {"is_sound": False}, {}, "bootstrap"),
        (BEHIND | {"is_sound": False, "is_automatic": False}, {}, "refuse"),
        # Something was committed by others behind it.
        ({"sync_replicas": 1, "committed_lsn": 101}, {}, "refuse!"),
        ({"sync_replicas": 1, "applied_lsn": 101}, {}, "refuse!"),
        ({"sync_replicas": 1, "committed_lsn": 101, "is_automatic": False}, {}, "refuse!"),
        ({"sync_replicas": 1, "committed_lsn": 101, "is_sound": False}, {}, "refuse!"),
        (STRANGER | {"sync_replicas": 1, "committed_lsn": 90}, {}, "refuse!"),
        # Nothing was.
        ({"sync_replicas": 1, "committed_lsn": 100, "applied_lsn": 100}, {}, "truncate"),
        ({"sync_replicas": 1, "committed_lsn": 60}, {}, "truncate"),
        ({"sync_replicas": 1, "committed_lsn": 60, "is_automatic": False}, {}, "refuse"),
        # Without others to confirm, what the state holds decides.
        ({}, {}, "truncate"),
        ({"committed_lsn": 120}, {}, "truncate"),
        ({"committed_lsn": 120, "applied_lsn": 100}, {}, "truncate"),
        ({"applied_lsn": 101}, {}, "keys"),
        ({"applied_lsn": 120, "committed_lsn": 120}, {}, "keys"),
        ({"applied_lsn": 120, "is_automatic": False}, {}, "refuse"),
        ({"applied_lsn": 120, "takes_keys": False}, {}, "bootstrap"),
        ({"applied_lsn": 120, "is_sound": False}, {}, "bootstrap"),
        ({"applied_lsn": 120}, {"segments": ((1, 9), (101, KEYS_LOG_BYTES_MAX + 1))}, "bootstrap"),
        ({"applied_lsn": 120}, {"committed_lsn": 100}, "keys"),
        ({"applied_lsn": 120}, {"committed_lsn": 99}, "bootstrap"),
        ({"applied_lsn": 100}, {"committed_lsn": 99}, "truncate"),
        ({"applied_lsn": 120}, FULL, "bootstrap"),
        ({}, FULL, "bootstrap"),
        ({"applied_lsn": 120}, LATE, "bootstrap"),
        ({}, {"oldest_lsn": 102}, "bootstrap"),
        ({"oldest_lsn": 101}, {}, "bootstrap"),
        ({"oldest_lsn": 100}, {}, "truncate"),
        (STRANGER, {}, "bootstrap"),
        (STRANGER | {"is_automatic": False}, {}, "refuse"),
        # A state that each process makes for itself.
        (OWN, {}, "truncate"),
        (OWN | {"oldest_lsn": 50}, {}, "bootstrap"),
        (OWN | {"oldest_lsn": 50, "snapshots": (49,)}, {}, "truncate"),
        (OWN | {"oldest_lsn": 50, "snapshots": (40, 101)}, {}, "bootstrap"),
        (OWN | {"oldest_lsn": 50, "snapshots": (40, 100)}, {}, "truncate"),
    ],
)
def test_the_outcome_is_that_of_the_table(
    theirs: dict[str, Any], ours: dict[str, Any], expected: str
) -> None:
    outcome = decide_rejoin(replica(**theirs), primary(**ours))
    assert NAMES[type(outcome)] == expected.removesuffix("!")
    if isinstance(outcome, (Truncate, TakeKeys)):
        assert outcome.fork == FORK
    if isinstance(outcome, Refuse):
        assert outcome.is_fault == expected.endswith("!")
        assert outcome.is_fault or "perdure rejoin" in outcome.why
    if isinstance(outcome, Bootstrap):
        is_behind = theirs.get("end", REPLICA.end).lsn <= 100
        assert outcome.has_parted != is_behind or outcome.fork is None
        assert outcome.why


def test_what_is_too_far_behind_to_be_compared_is_not_said_to_have_parted() -> None:
    outcome = decide_rejoin(replica(), primary(**LATE | {"oldest_lsn": 130}))
    assert outcome == Bootstrap(None, False, "the primary's log begins with LSN 130")
    old_primary = decide_rejoin(replica(was_primary=True), primary(**LATE | {"oldest_lsn": 130}))
    assert old_primary == Bootstrap(None, True, "the primary's log begins with LSN 130")


def many_epochs(first: int, last: int, *, told: int = 1024) -> tuple[tuple[int, int], ...]:
    """Epochs of ten events each, as many of the newest as a message tells."""
    return tuple((epoch, 10 * epoch - 9) for epoch in range(first, last + 1))[-told:]


def test_a_replica_that_is_more_epochs_behind_than_are_told_follows_a_primary_that_knows_all_of_its_own() -> (
    None
):
    behind = replica(end=Position(5, 50, 3), epochs=many_epochs(1, 5), committed_lsn=50, sync_replicas=1)
    ours = primary(
        end=Position(3000, 30_000, 7), epochs=many_epochs(1, 3000, told=3000), committed_lsn=30_000
    )
    assert decide_rejoin(behind, ours) == Follow(behind.end)
    parted = replica(end=Position(5, 55, 3), epochs=many_epochs(1, 5), committed_lsn=50, sync_replicas=1)
    assert decide_rejoin(parted, ours) == Truncate(Common(5, 50))


def test_a_primary_that_tells_only_newer_epochs_than_the_replica_s_is_no_fault() -> None:
    ours = primary(end=Position(3000, 30_000, 7), epochs=many_epochs(1, 3000), committed_lsn=30_000)
    for changes in ({}, {"is_sound": False}, {"was_primary": True}):
        behind = replica(
            end=Position(5, 50, 3), epochs=many_epochs(1, 5), committed_lsn=50, sync_replicas=1, **changes
        )
        outcome = decide_rejoin(behind, ours)
        assert outcome == Bootstrap(
            None,
            behind.was_primary,
            "its log ends in epoch 5, before the newest 1024 of the primary",
        )


def test_a_replica_with_more_epochs_of_its_own_than_it_tells_is_refused_and_is_no_fault() -> None:
    ours = primary(end=Position(9000, 120, 7), epochs=((1, 1), (9000, 101)))
    theirs = replica(
        end=Position(3000, 30_000, 3), epochs=many_epochs(1, 3000), committed_lsn=30_000, sync_replicas=1
    )
    outcome = decide_rejoin(theirs, ours)
    assert isinstance(outcome, Refuse) and not outcome.is_fault
    assert "newest 1024 epochs" in outcome.why and "perdure rejoin DIR --force" in outcome.why
    forced = decide_rejoin(msgspec.structs.replace(theirs, is_forced=True), ours)
    assert isinstance(forced, Bootstrap) and forced.has_parted
    told = msgspec.structs.replace(theirs, epochs=many_epochs(1, 3000, told=3000))
    outcome = decide_rejoin(told, ours)
    assert isinstance(outcome, Refuse) and outcome.is_fault  # they part behind epoch 1, which both tell


def test_bytes_behind_counts_whole_segments() -> None:
    segments = ((1, 10), (11, 20), (31, 40))
    assert [bytes_behind(segments, lsn) for lsn in (0, 9, 10, 30, 99)] == [70, 70, 60, 40, 40]
    assert bytes_behind((), 5) == 0


# -- against histories -----------------------------------------------------------------------------

History = list[tuple[int, int]]
"""For each LSN from 1 on: (its epoch, a number that no other frame has)."""


def grow(random_: random.Random) -> list[History]:
    """Some nodes' logs after elections and writes at random; one primary an epoch, appended to by it."""
    logs: list[History] = [[] for _ in range(3)]
    epoch, serial, primary_ = 1, 0, 0
    for _ in range(random_.randrange(5, 40)):
        action = random_.randrange(4)
        if action == 0:
            epoch, primary_ = epoch + 1, random_.randrange(3)
        elif action == 1:  # a replica takes what it lacks, if it may
            other = random_.randrange(3)
            source, target = logs[primary_], logs[other]
            if target == source[: len(target)]:
                target += source[len(target) : len(target) + random_.randrange(6)]
        else:
            serial += 1
            logs[primary_].append((epoch, serial))
            if action == 3 and not random_.randrange(3):  # an old primary that does not know it yet
                stale = random_.choice([log for log in logs if log] or [logs[primary_]])
                owner = stale[-1][0]
                if all(log[: len(stale)] == stale or not any(e == owner for e, _ in log) for log in logs):
                    stale.append((owner, serial + 1))
                    serial += 1
    return logs


def epochs_of(log: History) -> tuple[tuple[int, int], ...]:
    first: dict[int, int] = {}
    for number, (epoch, _) in enumerate(log, 1):
        first.setdefault(epoch, number)
    return tuple(sorted(first.items()))


def end_of(log: History) -> Position:
    return Position(log[-1][0], len(log), log[-1][1]) if log else Position(0, 0, 0)


def common_length(one: History, other: History) -> int:
    length = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        length += 1
    return length


def is_one_history_an_epoch(logs: list[History]) -> bool:
    """Do logs that share an epoch agree on it up to the end of the shorter one?"""
    for one in logs:
        for other in logs:
            shared = {epoch for epoch, _ in one} & {epoch for epoch, _ in other}
            if not shared:
                continue
            last = max(shared)
            upto = min(sum(1 for e, _ in one if e <= last), sum(1 for e, _ in other if e <= last))
            if one[:upto] != other[:upto]:
                return False
    return True


def test_the_fork_is_the_longest_common_beginning_of_any_two_histories() -> None:
    random_ = random.Random(SEED)
    seen: dict[type, int] = {}
    for number in range(4000):
        logs = grow(random_)
        if not is_one_history_an_epoch(logs):
            continue
        ours, theirs = random_.sample(logs, 2)
        if not ours or not theirs:
            continue
        common = common_length(ours, theirs)
        applied = random_.randrange(len(theirs) + 1)
        k = random_.randrange(2)
        outcome = decide_rejoin(
            ReplicaFacts(end_of(theirs), epochs_of(theirs), 1, applied, applied, k),
            PrimaryFacts(end_of(ours), epochs_of(ours), 1, ((1, 100),), 1000, len(ours)),
        )
        expect(outcome, common, len(theirs), applied, k, f"seed {SEED} number {number}")
        seen[type(outcome)] = seen.get(type(outcome), 0) + 1
    assert set(seen) == {Follow, Truncate, TakeKeys, Bootstrap, Refuse}, f"seed {SEED}: {seen}"


def expect(outcome: Outcome, common: int, length: int, applied: int, k: int, what: str) -> None:
    match outcome:
        case Follow():
            assert common == length, what
        case Truncate(fork):
            assert fork.lsn == common < length, what
            assert applied <= common, what
        case TakeKeys(fork):
            assert fork.lsn == common < applied, what
            assert k == 0, what
        case Bootstrap(fork, has_parted):
            assert fork is None, what
            assert has_parted, what
            assert common == 0, what
        case Refuse(_, _, is_fault):
            assert is_fault, what
            assert k == 1, what
            assert applied > common, what


@pytest.mark.parametrize(
    ("losses", "is_forced", "expected"),
    [
        ((), False, "refuse"),
        (((101, 101),), False, "truncate"),  # the promotion that began at 101 accepted to lose 101 and on
        (((101, 60),), False, "truncate"),
        (((101, 102),), False, "refuse"),
        (((90, 80),), False, "refuse"),  # an older promotion says nothing of this fork
        ((), True, "truncate"),
    ],
)
def test_what_a_promotion_accepted_to_lose_is_no_fault(
    losses: tuple[tuple[int, int], ...], is_forced: bool, expected: str
) -> None:
    theirs = replica(sync_replicas=1, committed_lsn=110, is_forced=is_forced)
    assert NAMES[type(decide_rejoin(theirs, primary(losses=losses)))] == expected
    state = replica(sync_replicas=1, committed_lsn=110, applied_lsn=110, is_forced=is_forced)
    found = NAMES[type(decide_rejoin(state, primary(losses=losses)))]
    assert found == ("keys" if expected == "truncate" else expected)
