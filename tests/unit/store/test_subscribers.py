"""Subscribers: told in order, from all processes, and a bad one harms nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import DivergedError, SessionEvent, SessionStore, StoreClosedError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "store") as opened:
        yield opened


def test_subscribers_are_told_from_now_on_in_log_order_and_by_kind(store: SessionStore) -> None:
    store.put("before", {}, None)
    everything: list[SessionEvent] = []
    deleted: list[str] = []
    store.on("*", everything.append)
    store.on("deleted", lambda event: deleted.append(event.id))
    for number in range(20):
        store.put(f"s{number}", {}, None)
    store.delete("s3")
    assert store.drain_events()
    later: list[SessionEvent] = []
    store.on(["created", "deleted"], later.append)
    store.delete("s4")
    assert store.drain_events()
    lsns = [event.lsn for event in everything]
    assert lsns == sorted(lsns)
    assert [event.id for event in everything] == [f"s{number}" for number in range(20)] + ["s3", "s4"]
    assert deleted == ["s3", "s4"]
    assert [event.id for event in later] == ["s4"]


def test_what_another_process_writes_is_told_too(store: SessionStore, tmp_path: Path) -> None:
    seen: list[str] = []
    store.on("created", lambda event: seen.append(event.id))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with SessionStore.open(tmp_path / "store") as other:
                other.put("theirs", {}, None)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.put("ours", {}, None)
    assert store.drain_events()
    assert seen == ["theirs", "ours"]


def test_a_subscriber_that_raises_is_counted_and_the_others_are_told(store: SessionStore) -> None:
    seen: list[str] = []

    def bad(event: SessionEvent) -> None:
        raise SystemExit("broken") if event.id == "s1" else ValueError(f"cannot take {event.id}")

    assert store.stats()["subscriber_errors"] == 0
    store.on("*", bad)
    store.on("*", lambda event: seen.append(event.id))
    for number in range(3):
        store.put(f"s{number}", {}, None)
    assert store.drain_events()
    assert seen == ["s0", "s1", "s2"]
    stats = store.stats()
    assert stats["subscriber_errors"] == 3
    assert "cannot take s2" in stats["subscriber_last_error"]


def test_a_callback_may_use_the_store_and_cancel_itself(store: SessionStore) -> None:
    done: list[str] = []

    def copy(event: SessionEvent) -> None:
        done.append(event.id)
        if not event.id.startswith("copy-"):
            assert event.session is not None
            assert store.peek(event.id) == event.session
            store.put(f"copy-{event.id}", event.session.metadata, None)
        elif event.id == "copy-s2":
            subscription.cancel()

    subscription = store.on("created", copy)
    for number in range(3):
        store.put(f"s{number}", {"n": number}, None)
    deadline_s = time.monotonic() + 10
    while not subscription.is_cancelled:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    store.put("later", {}, None)
    assert store.drain_events()
    assert sorted(done) == ["copy-s0", "copy-s1", "copy-s2", "s0", "s1", "s2"]
    assert store.stats()["subscriber_errors"] == 0


def test_a_slow_subscriber_delays_no_writer_and_drain_says_that_time_is_up(store: SessionStore) -> None:
    going_on = threading.Event()
    seen: list[int] = []

    def slow(event: SessionEvent) -> None:
        going_on.wait(20)
        seen.append(event.lsn)

    store.on("*", slow)
    for _ in range(200):
        store.create({})
    assert not store.drain_events(timeout_ms=20)
    assert len(seen) == 0
    going_on.set()
    assert store.drain_events()
    assert len(seen) == 200


def test_draining_inside_a_callback_is_refused_and_closing_there_works(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "store")
    found: list[BaseException] = []
    closed = threading.Event()

    def close(event: SessionEvent) -> None:
        try:
            store.drain_events()
        except UsageError as error:
            found.append(error)
        store.close()
        closed.set()

    store.on("*", close)
    store.create({})
    assert closed.wait(20)
    assert len(found) == 1
    with pytest.raises(StoreClosedError):
        store.on("*", print)


def test_no_call_begins_after_close_and_the_thread_is_gone(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "store")
    seen: list[int] = []

    def note(event: SessionEvent) -> None:
        time.sleep(0.002)
        seen.append(event.lsn)

    store.on("*", note)
    dispatcher = store._events._subscribers._dispatcher  # type: ignore[union-attr]
    assert dispatcher is not None
    for _ in range(100):
        store.create({})
    store.close()
    after = len(seen)
    assert not dispatcher.is_alive()
    assert len(seen) == after


def test_a_subscription_behind_the_last_cancel_is_told_again(store: SessionStore) -> None:
    for round_number in range(5):
        seen: list[str] = []
        subscription = store.on("*", lambda event, seen=seen: seen.append(event.id))  # type: ignore[misc]
        store.put(f"s{round_number}", {}, None)
        assert store.drain_events()
        subscription.cancel()
        subscription.cancel()
        store.put("unheard", {}, None)
        assert seen == [f"s{round_number}"]


def test_after_a_cut_subscribers_are_told_what_comes_then_and_the_gap_is_counted(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    store.on("*", lambda event: seen.append(event.id))
    store.put("told", {}, None)
    assert store.drain_events()  # what reads for them has entered the log
    dispatcher = store._events._subscribers._dispatcher  # type: ignore[union-attr]
    assert dispatcher is not None
    real, failed, is_put = dispatcher._reader.read, threading.Event(), threading.Event()

    def cut(upto_lsn: int | None = None) -> list[SessionEvent] | None:
        if not failed.is_set():
            assert is_put.wait(20)
            failed.set()
            raise DivergedError("the log was cut")
        return real(upto_lsn)

    monkeypatch.setattr(dispatcher._reader, "read", cut)
    store.put("lost", {}, None)
    is_put.set()
    assert failed.wait(10)
    assert store.drain_events()
    store.put("seen", {}, None)
    assert store.drain_events()
    assert seen == ["told", "seen"]
    assert "was cut" in store.stats()["subscriber_last_error"]


def test_only_what_can_be_called_subscribes_and_only_to_known_kinds(store: SessionStore) -> None:
    with pytest.raises(UsageError):
        store.on("created", "print")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        store.on("gone", print)


def test_what_would_listen_to_a_store_that_is_being_closed_is_refused(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with SessionStore.open(tmp_path / "store") as store:
        store._events.close()  # what close() does first
        with pytest.raises(StoreClosedError):
            store.on("*", print)
        with pytest.raises(StoreClosedError):
            store.feed(consumer="late")
        assert [consumer.is_active for consumer in store.consumers()] == [False]
        assert "perdure-events" not in {thread.name for thread in set(threading.enumerate()) - before}
