"""Before a slow sync: who was released is waited for while it comes, and for no longer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from perdure.store import SessionStore, gathering
from perdure.store.gathering import PATIENCE, SLOW_NS, SYNC_NS_MAX, VAIN_MAX, gather, note_sync
from perdure.store.page import PAGE_BYTES, Word
from tests.support.machine import stop_background

SYNC_NS = 8_000_000
DEADLINE_S = 10.0
WRITERS = 8
ROUNDS = 12


class Time:
    """A clock that moves in sleep() only; what happens meanwhile is given by the sleep's number."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000
        self.sleeps = 0
        self.meanwhile: Callable[[int], None] = lambda number: None

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now_ns += max(1, round(seconds * 1e9))
        self.meanwhile(self.sleeps)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(gathering, "time", clock)
    return clock


@pytest.fixture
def words(clock: Time) -> list[int]:
    """Four writers were released by a sync of SYNC_NS just now, and four others had appended meanwhile."""
    words = [0] * (PAGE_BYTES // 8)
    words[Word.SYNC_NS] = SYNC_NS
    words[Word.FLUSHED], words[Word.APPENDED] = 100, 108
    note_sync(words, clock.now_ns - SYNC_NS, 104)
    return words


def test_a_sync_that_ends_says_how_long_it_took_and_whom_it_releases(words: list[int], clock: Time) -> None:
    assert words[Word.SYNC_NS] == SYNC_NS
    assert words[Word.SYNCED_NS] == clock.now_ns
    assert (words[Word.SYNC_BEHIND], words[Word.SYNC_RELEASED]) == (108, 4)
    note_sync(words, clock.now_ns - 4 * SYNC_NS, 108)
    assert words[Word.SYNC_NS] == (3 * SYNC_NS + 4 * SYNC_NS) // 4
    note_sync(words, clock.now_ns - 4 * SYNC_NS_MAX, 108)
    assert words[Word.SYNC_NS] <= SYNC_NS_MAX
    note_sync(words, clock.now_ns + SYNC_NS, 90)  # a clock and a log that went back
    assert words[Word.SYNC_RELEASED] == 0


def test_a_sync_when_all_who_were_released_come_back_begins_at_once_behind_the_last(
    words: list[int], clock: Time
) -> None:
    def come(_number: int) -> None:
        words[Word.APPENDED] += 1

    clock.meanwhile = come
    gather(words)
    assert words[Word.APPENDED] == 112
    assert clock.sleeps == 4
    assert words[Word.SYNC_VAIN] == 0


def test_a_sync_when_some_come_and_then_nobody_waits_for_no_more_than_its_patience(
    words: list[int], clock: Time
) -> None:
    def come(number: int) -> None:
        words[Word.APPENDED] += number <= 2

    began_ns, clock.meanwhile = clock.now_ns, come
    gather(words)
    assert words[Word.APPENDED] == 110
    assert clock.now_ns - began_ns <= SYNC_NS * 2 // PATIENCE
    assert words[Word.SYNC_AT_ONCE] == 0


def test_a_sync_is_never_delayed_by_more_than_half_of_one(words: list[int], clock: Time) -> None:
    words[Word.SYNC_RELEASED] = 1_000

    def come(_number: int) -> None:
        words[Word.APPENDED] += 1

    began_ns, clock.meanwhile = clock.now_ns, come
    gather(words)
    assert clock.now_ns - began_ns == SYNC_NS // 2


def test_waits_in_vain_become_rare_and_one_that_is_not_makes_them_common_again(
    words: list[int], clock: Time
) -> None:
    waited = []
    for _ in range(200):
        before = clock.sleeps
        note_sync(words, clock.now_ns - SYNC_NS, 104)
        gather(words)
        waited.append(clock.sleeps > before)
    at = [number for number, has_waited in enumerate(waited) if has_waited]
    between = [after - before - 1 for before, after in pairwise(at)]
    assert between[:5] == [1, 3, 7, 15, 31]
    assert set(between[5:]) == {VAIN_MAX}

    def come(_number: int) -> None:
        words[Word.APPENDED] += 1

    words[Word.SYNC_AT_ONCE] = 0
    clock.meanwhile = come
    note_sync(words, clock.now_ns - SYNC_NS, 104)
    gather(words)
    assert words[Word.SYNC_AT_ONCE] == words[Word.SYNC_VAIN] == 0


def fast(words: list[int], _clock: Time) -> None:
    words[Word.SYNC_NS] = SLOW_NS - 1


def long_ago(words: list[int], clock: Time) -> None:
    clock.now_ns += SYNC_NS // 2


def in_the_future(words: list[int], clock: Time) -> None:
    words[Word.SYNCED_NS] = clock.now_ns + 1


def all_are_back(words: list[int], _clock: Time) -> None:
    words[Word.APPENDED] += 4


def cut(words: list[int], _clock: Time) -> None:
    words[Word.APPENDED] = 101


def nobody_was_released(words: list[int], _clock: Time) -> None:
    words[Word.SYNC_RELEASED] = 0


@pytest.mark.parametrize("case", [fast, long_ago, in_the_future, all_are_back, cut, nobody_was_released])
def test_a_sync_that_nobody_is_to_be_waited_for_begins_at_once(
    words: list[int], clock: Time, case: Callable[[list[int], Time], None]
) -> None:
    case(words, clock)
    gather(words)
    assert clock.sleeps == 0


def test_a_single_writer_is_not_held_up(words: list[int], clock: Time) -> None:
    for lsn in range(200, 300):
        words[Word.FLUSHED], words[Word.APPENDED] = lsn - 1, lsn
        gather(words)
        note_sync(words, clock.now_ns - SYNC_NS, lsn)
    assert clock.sleeps == 0


class SlowDisk:
    """Its syncs seem to take SYNC_NS; the clock of the gathering stands still while one is on its way."""

    def __init__(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.ended: list[int] = []
        self._words = store._log.words
        self._flusher = store._log.flusher
        self._first_lsn = self._words[Word.APPENDED]
        self._time = Time()
        monkeypatch.setattr(gathering, "time", self)
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def monotonic_ns(self) -> int:
        return self._time.now_ns

    def sleep(self, _seconds: float) -> None:
        """Until one more has come, or none can: each has ended, or waits for this sync."""
        before, deadline = self._words[Word.APPENDED], time.monotonic() + DEADLINE_S
        while self._words[Word.APPENDED] == before:
            if len(self._flusher._waiting) + 1 + len(self.ended) >= WRITERS:
                self._time.now_ns += SYNC_NS
                return
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def _sync(self, _descriptor: int) -> None:
        self.calls += 1
        self._words[Word.MARK_SYNCED_MS] = time.monotonic_ns() // 1_000_000  # no sync of the mark
        deadline = time.monotonic() + DEADLINE_S
        while self._words[Word.APPENDED] < self._first_lsn + WRITERS:  # nobody waits for who has never come
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store", durability="disk", sweep_interval_ms=0) as opened:
        stop_background(opened)  # which would sync for itself once a second
        yield opened


def test_threads_that_wait_for_a_slow_disk_share_each_sync_all_of_them(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(store, monkeypatch)
    words = store._log.words
    monkeypatch.setattr(
        "perdure.store.flush.note_sync",
        lambda its, began_ns, lsn: note_sync(its, disk.monotonic_ns() - SYNC_NS, lsn),
    )
    words[Word.SYNC_NS] = SYNC_NS
    start = threading.Barrier(WRITERS)

    def write() -> None:
        start.wait(DEADLINE_S)
        for number in range(ROUNDS):
            store.create({"n": number})
        disk.ended.append(1)

    writers = [threading.Thread(target=write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(6 * DEADLINE_S)
        assert not writer.is_alive()
    assert store.count() == WRITERS * ROUNDS
    assert disk.calls <= ROUNDS + 5  # in two halves they need twice as many
