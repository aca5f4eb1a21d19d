"""Consumers: progress that is kept, who may read under a name, what an acknowledgement survives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import BusyError, CorruptError, DivergedError, PositionGoneError, SessionStore, UsageError
from perdure.store.consumers import MAGIC, VERSION, Progress, read_progress
from perdure.store.cursor import list_segments
from perdure.store.smallfile import publish_small


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store") as opened:
        yield opened


def fill(store: SessionStore, count: int = 5) -> None:
    for number in range(count):
        store.put(f"s{number}", {"n": number}, None)


def kept(store: SessionStore) -> int:
    return store.consumers()[0].lsn


def test_asking_for_the_next_event_acknowledges_the_one_before(store: SessionStore) -> None:
    with store.feed(consumer="c") as feed:
        fill(store)
        first = next(feed)
        assert kept(store) == first.lsn - 1
        second = next(feed)
        assert kept(store) == first.lsn
    with store.feed(consumer="c") as feed:
        assert next(feed).lsn == second.lsn  # it was delivered, and never acknowledged
        feed.ack(second)
    with store.feed(consumer="c") as feed:
        assert next(feed).lsn == second.lsn + 1


def test_without_automatic_acknowledgements_only_ack_counts(store: SessionStore) -> None:
    with store.feed(consumer="c", auto_ack=False, timeout_ms=0) as feed:
        fill(store)
        events = list(feed)
        assert kept(store) == events[0].lsn - 1
        feed.ack(events[2])
        feed.ack(events[1])  # an older one takes nothing back
        assert kept(store) == events[2].lsn
        store.put("later", {}, None)
        with pytest.raises(UsageError, match="not delivered"):
            feed.ack(next(iter(store.feed(events[-1].lsn + 1, follow=False))))
    with store.feed(consumer="c") as feed:
        assert next(feed).lsn == events[3].lsn


def test_a_feed_without_a_name_has_nothing_to_acknowledge(store: SessionStore) -> None:
    fill(store)
    feed = store.feed(0)
    with pytest.raises(UsageError, match="consumer=NAME"):
        feed.ack(next(feed))


def test_what_nobody_asked_for_counts_as_done_once_all_before_it_is_acknowledged(store: SessionStore) -> None:
    with store.feed(consumer="c", kinds="deleted", timeout_ms=0) as feed:
        fill(store)
        assert list(feed) == []
        assert store.consumers()[0].lag_events == 0
        store.delete("s1")
        fill(store)
        event = next(feed)
        fill(store)
        assert store.consumers()[0].lag_events > 10  # it is not acknowledged
        assert list(feed) == []
        assert store.consumers()[0].lag_events == 0
        assert event.id == "s1"


def test_acknowledgements_are_written_every_so_many_events_and_when_the_feed_waits(
    store: SessionStore,
) -> None:
    with store.feed(consumer="c", ack_every_events=4, timeout_ms=0) as feed:
        began = kept(store)
        fill(store, 7)
        seen = []
        for event in feed:
            seen.append(event.lsn)
            if len(seen) == 4:
                assert kept(store) == began
            if len(seen) == 6:
                assert kept(store) == seen[3]
        assert kept(store) == seen[-1]
    for wrong in ({"ack_every_events": 0}, {"ack_interval_ms": -1}, {"ack_every_events": True}):
        with pytest.raises(UsageError):
            store.feed(**wrong)


def test_an_acknowledgement_is_synced_each_time_or_by_the_interval(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fdatasync

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", note)
    counts = {}
    for interval_ms in (0, 3_600_000):
        name = f"every-{interval_ms}"
        with store.feed(consumer=name, ack_interval_ms=interval_ms, timeout_ms=0) as feed:
            fill(store, 10)
            list(feed)
            counts[interval_ms] = synced.count(f"{name}.feed")
        assert synced.count(f"{name}.feed") == max(1, counts[interval_ms])  # close() syncs what is left
    assert counts[0] >= 8
    assert counts[3_600_000] == 0


def test_a_name_is_read_under_by_one_feed_at_a_time(store: SessionStore, tmp_path: Path) -> None:
    feed = store.feed(consumer="c")
    with SessionStore.open(tmp_path / "store") as other:
        with pytest.raises(BusyError, match="'c'"):
            other.feed(consumer="c")
        with pytest.raises(BusyError):
            other.drop_consumer("c")
        assert other.consumers()[0].is_active
        feed.close()
        assert not other.consumers()[0].is_active
        other.feed(consumer="c").close()


@pytest.mark.parametrize("wrong", ["", "A", "a/b", "-a", "a" * 65, ".."])
def test_a_bad_name_is_refused_and_makes_no_file(store: SessionStore, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UsageError):
        store.feed(consumer=wrong)
    with pytest.raises(UsageError):
        store.drop_consumer(wrong)
    assert not (tmp_path / "store" / "feeds").exists()


def test_a_dropped_consumer_is_gone_and_its_name_begins_anew(store: SessionStore) -> None:
    store.feed(consumer="c").close()
    fill(store)
    assert store.drop_consumer("c")
    assert not store.drop_consumer("c")
    assert store.consumers() == []
    assert list(store.feed(consumer="c", follow=False)) == []


def test_a_place_that_is_given_moves_the_consumer_there(store: SessionStore) -> None:
    fill(store)
    store.feed(consumer="c").close()
    with store.feed(4, consumer="c") as feed:
        assert next(feed).lsn == 4
    assert kept(store) == 3


def test_a_refused_place_leaves_the_progress_and_the_name_free(store: SessionStore) -> None:
    fill(store)
    store.feed(consumer="c").close()
    before = store.consumers()
    with pytest.raises(PositionGoneError):
        store.feed(1000, consumer="c")
    assert store.consumers() == before
    store.feed(consumer="c").close()


def test_a_consumer_whose_log_was_dropped_learns_which_lsn_is_gone(tmp_path: Path) -> None:
    from perdure.store import OpenOptions, open_store

    options = OpenOptions(segment_bytes=1024)
    with SessionStore(open_store(tmp_path / "store", options), options, None) as store:
        store.feed(1, consumer="c").close()
        fill(store, 40)
        for file in list_segments(tmp_path / "store" / "log")[:2]:
            file.path.unlink()
        assert store.consumers()[0].is_gone
        with pytest.raises(PositionGoneError, match="consumer 'c'") as caught:
            store.feed(consumer="c")
        assert caught.value.lsn == 1
        with store.feed(0, consumer="c") as feed:
            assert next(feed).lsn > 1


def test_a_consumer_of_another_history_is_told_so(store: SessionStore, tmp_path: Path) -> None:
    fill(store)
    end = store.position()
    with store.feed(0, consumer="c", timeout_ms=0) as feed:
        list(feed)
    path = tmp_path / "store" / "feeds" / "c.feed"
    publish_small(path, MAGIC, VERSION, Progress("c", end.lsn, end.epoch, end.lsn, end.chain ^ 1, 0))
    with pytest.raises(DivergedError, match="consumer 'c'"):
        store.feed(consumer="c")
    far = Progress("c", end.lsn + 5, end.epoch, end.lsn + 5, 1, 0)
    publish_small(path, MAGIC, VERSION, far)
    with pytest.raises(DivergedError, match="ends at LSN"):
        store.feed(consumer="c")
    store.feed(0, consumer="c").close()


def test_damaged_progress_is_an_error_that_says_how_to_begin_anew(
    store: SessionStore, tmp_path: Path
) -> None:
    fill(store)
    store.feed(consumer="c").close()
    path = tmp_path / "store" / "feeds" / "c.feed"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="feed drop"):
        store.feed(consumer="c")
    with pytest.raises(CorruptError, match=r"c\.feed"):
        store.consumers()
    assert [name for name, _ in read_progress(tmp_path / "store")[1]] == ["c"]
    with store.feed(0, consumer="c") as feed:
        assert next(feed).id == "s0"
    assert kept(store) == 0
