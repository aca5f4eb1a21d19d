"""Retention: nothing that anybody needs is ever dropped, and every file's line says why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.recovery.retention import (
    ConsumerFacts,
    Plan,
    Policy,
    SegmentFacts,
    SlotFacts,
    SnapshotFacts,
    plan_retention,
)

NOW_MS = 1_000_000
OLD = Policy(log_age_ms=0, snapshots=1)


def segments(*sizes: int, age_ms: int = 10_000) -> list[SegmentFacts]:
    """Segments of so many events; the last is the tail."""
    facts, lsn = [], 1
    for number, size in enumerate(sizes):
        is_tail = number == len(sizes) - 1
        name = f"seg{number}"
        facts.append(SegmentFacts(name, lsn, lsn + size - 1, size * 100, NOW_MS - age_ms, not is_tail))
        lsn += size
    return facts


def snapshot(lsn: int, *, is_good: bool = True, age_ms: int = 10_000) -> SnapshotFacts:
    return SnapshotFacts(f"snap{lsn}", lsn, 1000, NOW_MS - age_ms, is_good, not is_good)


def plan(
    files: list[SegmentFacts],
    snapshots: list[SnapshotFacts],
    slots: list[SlotFacts] | None = None,
    policy: Policy = OLD,
    state_lsn: int = 1 << 60,
    consumers: list[ConsumerFacts] | None = None,
) -> Plan:
    return plan_retention(
        files,
        snapshots,
        slots or [],
        policy,
        now_ms=NOW_MS,
        state_lsn=state_lsn,
        consumers=consumers or [],
    )


def dropped(result: Plan) -> list[str]:
    return [line.name for line in result.drop]


def why(result: Plan, name: str) -> str:
    return next(line.why for line in result.lines if line.name == name)


def test_what_a_good_snapshot_state_and_all_replicas_have_goes_oldest_first() -> None:
    result = plan(segments(10, 10, 10, 10), [snapshot(35)], [SlotFacts("b", 40, True)])
    assert dropped(result) == ["seg0", "seg1", "seg2"]
    assert result.freed_bytes == 3000


def test_a_replica_that_is_behind_holds_what_it_needs_and_is_named() -> None:
    result = plan(segments(10, 10, 10, 10), [snapshot(35)], [SlotFacts("b", 15, True)])
    assert dropped(result) == ["seg0"]
    assert why(result, "seg1") == "replica b has LSN 15 on disk, and needs it"
    assert why(result, "seg2") == "seg1 stays, and a log has no holes"


def test_a_consumer_that_is_behind_holds_what_it_has_not_read_and_is_named() -> None:
    consumers = [ConsumerFacts("done", 40, NOW_MS), ConsumerFacts("slow", 15, NOW_MS - 1000)]
    result = plan(segments(10, 10, 10, 10), [snapshot(35)], consumers=consumers)
    assert dropped(result) == ["seg0"]
    assert why(result, "seg1") == "consumer slow has read up to LSN 15, and needs it"
    assert result.notes == ()


def test_a_forgotten_consumer_holds_nothing_and_that_is_said() -> None:
    policy = Policy(log_age_ms=0, snapshots=1, consumer_age_ms=5000)
    old = ConsumerFacts("old", 15, NOW_MS - 5001)
    result = plan(segments(10, 10, 10), [snapshot(25)], policy=policy, consumers=[old])
    assert dropped(result) == ["seg0", "seg1"]
    assert result.notes == ("consumer old holds nothing: it has read nothing for 5001 ms, longer than 5000",)
    late = ConsumerFacts("late", 15, 0)  # what it has not read was written a moment ago
    assert dropped(
        plan(segments(10, 10, 10, age_ms=4000), [snapshot(25)], policy=policy, consumers=[late])
    ) == ["seg0"]
    idle = ConsumerFacts("idle", 30, 0)  # it has read all there is: nothing is held, and nothing to be said
    assert plan(segments(10, 10, 10), [snapshot(25)], policy=policy, consumers=[idle]).notes == ()


def test_a_consumer_over_its_budget_holds_nothing_if_there_is_a_good_snapshot() -> None:
    policy = Policy(log_age_ms=0, snapshots=1, consumer_bytes=1500)
    consumer = ConsumerFacts("slow", 5, NOW_MS)
    result = plan(segments(10, 10, 10), [snapshot(25)], policy=policy, consumers=[consumer])
    assert dropped(result) == ["seg0", "seg1"]
    assert "over its budget of 1500" in result.notes[0]
    result = plan(segments(10, 10, 10), [], policy=policy, consumers=[consumer])
    assert dropped(result) == []


def test_a_consumer_that_cannot_go_on_anyway_holds_nothing() -> None:
    damaged = ConsumerFacts("bad", 0, 0, "it does not match its check")
    result = plan(segments(10, 10, 10), [snapshot(25)], consumers=[damaged])
    assert dropped(result) == ["seg0", "seg1"]
    assert "does not match its check" in result.notes[0]
    later = [SegmentFacts("seg9", 90, 99, 100, 0, True), SegmentFacts("tail", 100, 105, 100, 0, False)]
    result = plan(later, [snapshot(101)], consumers=[ConsumerFacts("late", 3, NOW_MS)])
    assert dropped(result) == ["seg9"]
    assert result.notes == ("consumer late holds nothing: the log it needs, LSN 4, is gone",)


def test_a_replica_that_gets_a_snapshot_anyway_or_lost_its_log_already_holds_nothing() -> None:
    slots = [SlotFacts("b", 3, False)]
    result = plan(segments(10, 10, 10), [snapshot(25)], slots)
    assert dropped(result) == ["seg0", "seg1"]
    later = [SegmentFacts("seg9", 90, 99, 100, 0, True), SegmentFacts("tail", 100, 105, 100, 0, False)]
    result = plan(later, [snapshot(101)], [SlotFacts("c", 3, True)])
    assert dropped(result) == ["seg9"]
    assert "is gone" in result.notes[0]


def test_a_replica_over_its_budget_holds_nothing_if_a_snapshot_can_bring_it_back() -> None:
    policy = Policy(log_age_ms=0, snapshots=1, slot_bytes=1500)
    slots = [SlotFacts("b", 5, True)]
    result = plan(segments(10, 10, 10), [snapshot(25)], slots, policy)
    assert dropped(result) == ["seg0", "seg1"]
    assert "over its budget" in result.notes[0]
    assert dropped(plan(segments(10, 10, 10), [], slots, policy)) == []


def test_without_a_good_snapshot_nothing_goes() -> None:
    result = plan(segments(10, 10, 10), [snapshot(25, is_good=False)])
    assert dropped(result) == []
    assert why(result, "seg0") == "there is no snapshot that is known to be good"
    assert why(result, "snap25") == "no snapshot is known to be good, so all stay"


def test_a_damaged_newer_snapshot_does_not_count_and_stays() -> None:
    result = plan(segments(10, 10, 10, 10), [snapshot(5), snapshot(12), snapshot(35, is_good=False)])
    assert dropped(result) == ["snap5", "seg0"]
    assert "damaged" in why(result, "snap35")
    assert why(result, "snap12") == "it is the newest good snapshot"
    assert why(result, "seg1") == "the newest good snapshot ends at LSN 12, and needs it"


def test_young_segments_unsealed_ones_and_what_the_state_lacks_stay() -> None:
    young = plan(segments(10, 10, 10, age_ms=500), [snapshot(25)], policy=Policy(log_age_ms=1000))
    assert dropped(young) == []
    assert "500 ms old" in why(young, "seg0")
    lagging = plan(segments(10, 10, 10), [snapshot(25)], state_lsn=12)
    assert dropped(lagging) == ["seg0"]
    files = segments(10, 10, 10)
    files[0] = SegmentFacts("seg0", 1, 10, 1000, 0, False)
    assert why(plan(files, [snapshot(25)]), "seg0") == "it is not sealed"


def test_snapshots_stay_by_number_and_by_age() -> None:
    policy = Policy(log_age_ms=0, snapshots=2, snapshot_age_ms=5_000)
    snapshots = [snapshot(1), snapshot(2, age_ms=100), snapshot(3), snapshot(4)]
    assert dropped(plan(segments(10), snapshots, policy=policy)) == ["snap1"]


HOUR_MS = 3_600_000


class Aging:
    """A store that grows by ten LSNs a minute, with a snapshot and a retention in each, as a node does."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now_ms = 0
        self.files: list[SegmentFacts] = []
        self.snapshots: list[SnapshotFacts] = []

    def pass_minute(self) -> Plan:
        self.now_ms += 60_000
        lsn = self.now_ms // 6_000
        self.files.append(SegmentFacts(f"seg{lsn}", lsn - 9, lsn, 100, self.now_ms, True))
        self.snapshots.append(SnapshotFacts(f"snap{lsn}", lsn, 100, self.now_ms, True))
        tail = SegmentFacts("tail", lsn + 1, lsn + 1, 100, self.now_ms, False)
        result = plan_retention(
            [*self.files, tail], self.snapshots, [], self.policy, now_ms=self.now_ms, state_lsn=lsn
        )
        gone = set(dropped(result))
        self.files = [file for file in self.files if file.name not in gone]
        self.snapshots = [file for file in self.snapshots if file.name not in gone]
        return result


def test_every_moment_of_the_policy_s_age_can_be_replayed_to_for_ever() -> None:
    aging = Aging(Policy(log_age_ms=24 * HOUR_MS))
    has_dropped = False
    for minute in range(1, 80 * 60):
        has_dropped = any(line.kind == "segment" for line in aging.pass_minute().drop) or has_dropped
        first = aging.files[0].first_lsn
        old = [one for one in aging.snapshots if aging.now_ms - one.created_ms >= 24 * HOUR_MS]
        assert first == 1 or any(one.lsn + 1 >= first for one in old), minute
        assert len(aging.snapshots) <= 3 + 3
    assert has_dropped
    assert aging.now_ms - aging.files[0].closed_ms < 37 * HOUR_MS


def test_where_no_age_is_asked_for_log_goes_up_to_the_newest_good_snapshot() -> None:
    aging = Aging(Policy(log_age_ms=0, snapshots=1))
    for _ in range(5):
        aging.pass_minute()
    assert (len(aging.files), len(aging.snapshots)) == (0, 1)


def test_log_stays_while_no_snapshot_is_as_old_as_point_in_time_recovery_reaches() -> None:
    policy = Policy(log_age_ms=5_000, snapshots=1)
    result = plan(segments(10, 10, 10), [snapshot(25, age_ms=100)], policy=policy)
    assert dropped(result) == []
    assert why(result, "seg0") == "no snapshot is 5000 ms old yet, for point-in-time recovery to begin with"
    result = plan(segments(10, 10, 10, 10), [snapshot(15), snapshot(35, age_ms=100)], policy=policy)
    assert dropped(result) == ["seg0"]
    assert why(result, "seg1") == "point-in-time recovery begins with the snapshot at LSN 15, and needs it"
    assert "begins with it, or will" in why(result, "snap15")


def test_a_snapshot_that_what_goes_relies_on_is_to_be_looked_at_first() -> None:
    policy = Policy(log_age_ms=5_000, snapshots=1)
    old, new = SnapshotFacts("snap15", 15, 1000, NOW_MS - 10_000, False), snapshot(35, age_ms=100)
    assert plan(segments(10, 10, 10, 10), [old, new], policy=policy).relies_on == "snap15"
    bad = snapshot(15, is_good=False)
    result = plan(segments(10, 10, 10, 10), [bad, new], policy=policy)
    assert (dropped(result), result.relies_on) == (["snap15"], "")


_SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(
    sizes=_SIZES,
    taken=st.lists(st.tuples(st.integers(1, 120), st.booleans(), st.integers(0, 50)), max_size=6),
    slots=st.lists(st.tuples(st.integers(0, 120), st.booleans()), max_size=4),
    ages=st.lists(st.integers(0, 50), min_size=8, max_size=8),
    unsealed=st.sets(st.integers(0, 7), max_size=2),
    policy=st.builds(
        Policy,
        log_age_ms=st.integers(0, 60),
        snapshots=st.integers(1, 4),
        snapshot_age_ms=st.integers(0, 60),
        slot_bytes=st.sampled_from([500, 3000, 1 << 40]),
    ),
    state_lsn=st.integers(0, 150),
    begins=st.integers(1, 60),
)
def test_whatever_the_files_all_that_is_needed_stays(
    sizes: list[int],
    taken: list[tuple[int, bool, int]],
    slots: list[tuple[int, bool]],
    ages: list[int],
    unsealed: set[int],
    policy: Policy,
    state_lsn: int,
    begins: int,
) -> None:
    files, lsn = [], begins
    for number, size in enumerate(sizes):
        is_sealed = number < len(sizes) - 1 and number not in unsealed
        closed_ms = NOW_MS - ages[number]
        files.append(SegmentFacts(f"seg{number}", lsn, lsn + size - 1, size * 100, closed_ms, is_sealed))
        lsn += size
    snapshots = [
        SnapshotFacts(f"snap{at}", at, 10, NOW_MS - age, is_good)
        for at, is_good, age in sorted({one[0]: one for one in taken}.values())
    ]
    held = [SlotFacts(f"n{number}", at, keeps) for number, (at, keeps) in enumerate(slots)]
    result = plan_retention(files, snapshots, held, policy, now_ms=NOW_MS, state_lsn=state_lsn)

    everything = [one.name for one in files] + [one.name for one in snapshots]
    assert sorted(line.name for line in result.lines) == sorted(everything)
    assert all(line.why for line in result.lines)
    gone = set(dropped(result))
    left = [one for one in files if one.name not in gone]
    assert left == files[len(files) - len(left) :]  # only from the oldest end
    assert left and left[-1] is files[-1]
    assert all(
        one.is_sealed and NOW_MS - one.closed_ms >= policy.log_age_ms for one in files if one.name in gone
    )
    if policy.log_age_ms and left != files:
        assert any(
            one.name not in gone
            and NOW_MS - one.created_ms >= policy.log_age_ms
            and one.lsn + 1 >= left[0].first_lsn
            for one in snapshots
        )
    good = [one for one in snapshots if one.is_good]
    if good:
        newest = max(good, key=lambda one: one.lsn)
        assert newest.name not in gone
        if files[0].first_lsn <= newest.lsn + 1:
            assert left[0].first_lsn <= newest.lsn + 1  # it can still be brought up to date
    else:
        assert not gone
    if files[0].first_lsn <= state_lsn + 1:
        assert left[0].first_lsn <= state_lsn + 1
    for slot in held:
        need = sum(one.size_bytes for one in files if one.last_lsn > slot.lsn)
        if slot.keeps_log and files[0].first_lsn <= slot.lsn + 1 and need <= policy.slot_bytes:
            assert left[0].first_lsn <= slot.lsn + 1
