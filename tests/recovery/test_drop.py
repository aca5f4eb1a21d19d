"""Retention carried out: only what nobody needs goes, oldest first, whenever it is interrupted."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import (
    apply_retention,
    drop,
    explain_retention,
    replay_to,
    summarise,
    take,
    take_snapshot,
    verify,
)
from perdure.recovery.retention import Policy
from perdure.recovery.take import judge_snapshot
from perdure.shipping import Slot, write_slot
from perdure.store import CorruptError, SessionStore, StorageError, names
from perdure.store.cursor import list_segments
from perdure.store.files import translate
from perdure.store.lock import FileLock
from perdure.store.snapshot import list_snapshots
from tests.recovery.kills import killed
from tests.recovery.stores import contents_of, fingerprint, seal, small_segments

ALL = Policy(log_age_ms=0, snapshots=1)


def make(path: Path, sessions: int = 80) -> Path:
    with small_segments(path, backend="sqlite") as store:
        for n in range(sessions):
            store.create({"n": n})
            if n in (sessions // 3, 2 * sessions // 3):
                take_snapshot(store._opened)
        store.fold()
        seal(store)
    return path


def test_what_is_not_needed_goes_and_the_store_is_as_sound_as_before(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    before = contents_of(path)
    explained = explain_retention(path, ALL)
    assert len(explained.drop) >= 3
    assert apply_retention(path, ALL).drop == explained.drop
    assert apply_retention(path, ALL).drop == ()
    assert summarise(verify(path)).exit_code == 0
    (path / "state" / "marker").unlink()
    assert contents_of(path) == before  # made again from what is left
    replay_to(path, tmp_path / "t")
    assert contents_of(tmp_path / "t") == before


def test_explaining_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    before = fingerprint(path)
    plan = explain_retention(path)
    assert plan.drop == () or all(line.kind == "snapshot" for line in plan.drop)
    assert fingerprint(path) == before


def test_a_slot_holds_the_log_and_a_damaged_slot_holds_everything(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    second = list_segments(path / "log")[1]
    write_slot(path, Slot("b", 1, second.first_lsn + 1, 0, "disconnected", 0))
    apply_retention(path, ALL)
    assert list_segments(path / "log")[0] == second
    slot = path / "slots" / "b.slot"
    data = bytearray(slot.read_bytes())
    data[-1] ^= 1
    slot.write_bytes(data)
    with pytest.raises(CorruptError):
        apply_retention(path, ALL)
    assert list_segments(path / "log")[0] == second


def test_a_consumer_holds_the_log_that_it_reads_next_and_misses_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    second = list_segments(path / "log")[1]
    with SessionStore.open(path) as store, store.feed(0, consumer="c", timeout_ms=0) as feed:
        seen = []
        for event in feed:
            seen.append(event.lsn)
            if event.lsn >= second.first_lsn + 1:
                break
        everything = [event.lsn for event in store.feed(0, follow=False)]
    assert apply_retention(path, ALL).drop
    assert list_segments(path / "log")[0] == second
    with SessionStore.open(path) as store, store.feed(consumer="c", follow=False) as feed:
        assert seen[:-1] + [event.lsn for event in feed] == everything  # the last one was not acknowledged
    apply_retention(path, ALL)
    assert list_segments(path / "log")[0] != second


def test_a_store_in_use_goes_on(tmp_path: Path) -> None:
    with small_segments(tmp_path / "s", backend="lmdb") as store:
        for n in range(80):
            store.create({"n": n})
        take_snapshot(store._opened)
        seal(store)
        assert apply_retention(tmp_path / "s", ALL).drop
        store.create({"after": True})
        assert store.count() == 81
    assert summarise(verify(tmp_path / "s")).exit_code == 0


def test_after_another_boot_all_log_stays_until_the_store_was_opened(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    (path / "control").unlink()
    assert [line for line in apply_retention(path, ALL).drop if line.kind == "segment"] == []
    with SessionStore.open(path):
        pass
    assert [line for line in apply_retention(path, ALL).drop if line.kind == "segment"]


def test_point_in_time_recovery_goes_on_behind_log_that_was_dropped(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    first, second = list_snapshots(path / "snapshots")
    os.utime(first.path, (1, 1))
    policy = Policy(log_age_ms=60_000, snapshots=1)
    later_ms = (
        time.time_ns() // 1_000_000 + 61_000
    )  # all segments are as old as that; the second snapshot is not
    os.utime(second.path, (later_ms / 1000, later_ms / 1000))
    plan = apply_retention(path, policy, now_ms=later_ms)
    assert [line.kind for line in plan.drop] and all(line.kind == "segment" for line in plan.drop)
    assert 1 < list_segments(path / "log")[0].first_lsn <= first.lsn + 1
    replay_to(path, tmp_path / "t", upto_lsn=first.lsn + 3)  # between the two: the older one is its base


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[140] ^= 1
    path.write_bytes(data)


def test_log_that_only_a_damaged_old_snapshot_would_replace_stays(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    first, second = list_snapshots(path / "snapshots")
    damage(first.path)
    os.utime(first.path, (1, 1))
    later_ms = time.time_ns() // 1_000_000 + 61_000
    os.utime(second.path, (later_ms / 1000, later_ms / 1000))
    plan = apply_retention(path, Policy(log_age_ms=60_000, snapshots=1), now_ms=later_ms)
    assert [line.name for line in plan.drop] == [first.name]
    assert list_segments(path / "log")[0].first_lsn == 1


def test_a_snapshot_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "s")
    first, second = list_snapshots(path / "snapshots")
    os.utime(first.path, (1, 1))
    later_ms = time.time_ns() // 1_000_000 + 61_000
    os.utime(second.path, (later_ms / 1000, later_ms / 1000))
    before = fingerprint(path)

    def fail(path: Path, *_: object) -> None:
        if path == first.path:
            raise translate(OSError(errno.EMFILE, "too many open files"), "cannot read a snapshot", path)

    monkeypatch.setattr(take, "verify_snapshot", fail)
    with pytest.raises(StorageError, match="Nothing was removed"):
        apply_retention(path, Policy(log_age_ms=60_000, snapshots=1), now_ms=later_ms)
    assert fingerprint(path) == before


def test_while_snapshots_are_read_others_may_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "s")
    free: list[bool] = []
    judge = judge_snapshot

    def judged(*args: Any) -> Any:
        lock = FileLock(path / names.FOLD_LOCK)
        try:
            free.append(lock.try_acquire())
        finally:
            lock.close()
        return judge(*args)

    monkeypatch.setattr(drop, "judge_snapshot", judged)
    assert apply_retention(path, ALL).drop
    assert free == [True]


def test_killed_at_any_removal_what_is_left_is_sound(tmp_path: Path) -> None:
    number = 0
    while True:
        path = make(tmp_path / str(number), sessions=60)
        if not killed(lambda path=path: apply_retention(path, ALL), number):  # type: ignore[misc]
            break
        assert summarise(verify(path, level="chain")).exit_code == 0
        assert len(contents_of(path)) == 60
        number += 1
    assert number >= 4
