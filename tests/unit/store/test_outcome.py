"""What became of a write: only a log that was read whole calls it lost, for it is then asked for again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import Outcome, Position
from perdure.store.cursor import LogCursor, SegmentFile, list_segments
from perdure.store.promise import Promise
from perdure.store.sessions import SessionStore
from tests.support.machine import open_quietly

NOBODY_S = "ff" * 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    """With several segments."""
    with open_quietly(tmp_path / "store", segment_bytes=4000) as opened:
        yield opened


def fill(store: SessionStore) -> list[Position]:
    """Where each of so many creations stands."""
    found = []
    for number in range(60):
        store.create({"n": number})
        found.append(store._log.cursor.at.position)
    return found


def test_a_write_is_lost_if_the_whole_log_has_it_not(store: SessionStore) -> None:
    places = fill(store)
    assert store.outcome(NOBODY_S) is Outcome.LOST
    assert store.outcome(places[3]._replace(chain=1)) is Outcome.LOST
    assert store.outcome((1, 1, 1)) is Outcome.LOST  # inside a frame
    assert store.outcome(places[3]) is Outcome.COMMITTED


def test_a_write_is_not_lost_because_a_log_lacks_frames(store: SessionStore, tmp_path: Path) -> None:
    places = fill(store)
    first, second = list_segments(tmp_path / "store" / "log")[:2]
    size = first.path.stat().st_size
    os.truncate(first.path, size - 1000)
    os.truncate(first.path, size)
    gone = [place for place in places if place.lsn < second.first_lsn][-2]
    assert store.outcome(gone) is Outcome.UNKNOWN
    assert store.outcome(NOBODY_S) is Outcome.UNKNOWN
    assert store.outcome(places[-1]) is Outcome.COMMITTED


def test_a_write_is_not_lost_because_the_log_is_dropped_while_it_is_read(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    files = list_segments(tmp_path / "store" / "log")
    real = LogCursor.open_segment

    def open_late(cursor: LogCursor, file: SegmentFile) -> None:
        real(cursor, file)
        if file.first_lsn == 1:
            for dropped in files[:2]:
                dropped.path.unlink()

    monkeypatch.setattr(LogCursor, "open_segment", open_late)
    assert store.outcome(NOBODY_S) is Outcome.UNKNOWN


@pytest.mark.parametrize("times", [1, 2, 100])
def test_a_log_that_is_dropped_just_before_it_is_read_is_looked_at_again(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    places = fill(store)
    for _ in range(4):
        fill(store)
    with store.batch() as batch:
        batch.create({"n": 1})
    real, opened = LogCursor.open_segment, list[SegmentFile]()

    def open_too_late(cursor: LogCursor, file: SegmentFile) -> None:
        if len(opened) < times and len(list_segments(cursor.log)) > 1:
            opened.append(file)
            file.path.unlink()
        real(cursor, file)

    monkeypatch.setattr(LogCursor, "open_segment", open_too_late)
    assert store.outcome(NOBODY_S) is Outcome.UNKNOWN
    assert store.outcome(places[0]) is Outcome.UNKNOWN
    assert store.outcome(batch.operation_id) is (Outcome.COMMITTED if times < 100 else Outcome.UNKNOWN)
    assert opened


def test_a_write_of_a_later_epoch_than_a_log_has_reached_is_not_lost(store: SessionStore) -> None:
    places = fill(store)
    later = places[3]._replace(epoch=places[-1].epoch + 1, chain=1)
    assert store.outcome(later) is Outcome.UNKNOWN  # another primary wrote it, and this log is behind


def test_who_is_not_the_primary_calls_no_operation_lost_that_it_does_not_know(store: SessionStore) -> None:
    fill(store)
    log = store._log
    with store.batch() as batch:
        batch.create({"n": 1})
    log.lock_any()
    log.give_promise(Promise(log.promise.epoch + 1, "another"))
    log.unlock()
    assert store.outcome(NOBODY_S) is Outcome.UNKNOWN  # it may come with the next frames
    assert store.outcome(batch.operation_id) is Outcome.COMMITTED
