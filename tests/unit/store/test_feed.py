"""The event feed: order, kinds, resuming anywhere, the commit rule, cuts, waiting, asyncio."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store import (
    AsyncFeed,
    DivergedError,
    EventKind,
    Feed,
    ForkedError,
    OpenOptions,
    Position,
    PositionGoneError,
    SessionEvent,
    SessionStore,
    StoreClosedError,
    UsageError,
    begin_cluster,
    init_store,
    open_store,
)
from perdure.store.control import Config
from perdure.store.cursor import list_segments
from perdure.store.page import Word
from tests.unit.store.test_write_path import Clock, Silent

Open = Callable[..., SessionStore]


@pytest.fixture
def open_one(tmp_path: Path) -> Iterator[Open]:
    opened: list[SessionStore] = []

    def open_it(gate: Any = None, **options: Any) -> SessionStore:
        chosen = OpenOptions(**options)
        opened.append(SessionStore(open_store(tmp_path / "store", chosen), chosen, gate))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def everything(store: SessionStore, from_lsn: int | Position = 0, **options: Any) -> list[SessionEvent]:
    with store.feed(from_lsn, follow=False, **options) as feed:
        return list(feed)


def told(event: SessionEvent) -> tuple[str, str, str]:
    return str(event.kind), event.reason, event.id


def mixed(store: SessionStore, clock: Clock, rng: random.Random) -> None:
    """Every kind of change, alone and in batches, over several segments."""
    ids: list[str] = []
    for number in range(60):
        ids.append(store.create({"n": number}, timeout_ms=1000 if number % 7 == 0 else None))
        store.put(f"k{number % 5}", {"n": number}, None)
        victim = rng.choice(ids)
        if store.exists(victim):
            store.patch(victim, {"more": "x" * rng.randrange(200)})
        if number % 9 == 0:
            with store.batch() as batch:
                ids.extend(batch.create({"batch": number}) for _ in range(rng.randrange(1, 6)))
                batch.touch(ids[-1])
                batch.put("k0", {"batch": number}, None)
                batch.delete(ids[-2])
        if number % 11 == 0:
            ids[-1] = store.regenerate_id(ids[-1])
        if number % 13 == 0:
            clock.ms += 5000
            store.cleanup_expired()


# -- what is told ----------------------------------------------------------------------------------


def test_each_kind_of_change_is_told_with_its_kind_reason_and_session(open_one: Open) -> None:
    clock = Clock()
    store = open_one(clock=clock)
    id = store.create({"n": 1}, group="g", tags=["t"])
    store.put("mine", {"n": 1}, 1000)
    store.put("mine", {"n": 2}, 1000)
    store.patch(id, {"n": 3})
    store.touch(id)
    new_id = store.regenerate_id(id)
    store.delete(new_id)
    clock.ms += 5000
    assert store.cleanup_expired() == 1
    store.put("mine", {"n": 4}, None)
    events = everything(store)
    assert [told(event) for event in events] == [
        ("created", "created", id),
        ("created", "replaced", "mine"),
        ("updated", "replaced", "mine"),
        ("updated", "updated", id),
        ("touched", "touched", id),
        ("renamed", "renamed", id),
        ("deleted", "deleted", new_id),
        ("expired", "expired", "mine"),
        ("created", "replaced", "mine"),
    ]
    sessions = [event.session for event in events]
    assert [session.metadata if session else None for session in sessions] == [
        {"n": 1},
        {"n": 1},
        {"n": 2},
        {"n": 3},
        None,
        None,
        None,
        None,
        {"n": 4},
    ]
    assert sessions[0] is not None and (sessions[0].group, sessions[0].tags) == ("g", ("t",))
    assert [event.new_id for event in events if event.new_id] == [new_id]
    assert [event.time_ms for event in events] == [1_000_000] * 7 + [1_005_000] * 2
    assert events[-1].to_dict()["session"]["metadata"] == {"n": 4}


def test_events_of_a_batch_share_frame_and_operation_and_have_lsns_of_their_own(open_one: Open) -> None:
    store = open_one()
    with store.batch() as batch:
        for number in range(3):
            batch.put(f"s{number}", {}, None)
    events = everything(store)
    assert [event.lsn for event in events] == [3, 4, 5]
    assert {event.position for event in events} == {store.position()}
    assert {event.operation_id for event in events} == {batch.operation_id}


def test_a_frame_of_roll_and_epoch_is_no_event(open_one: Open) -> None:
    store = open_one(segment_bytes=1)
    for number in range(4):
        store.put(f"s{number}", {}, None)
    assert len(list_segments(store._log.cursor.log)) >= 4
    assert [event.id for event in everything(store)] == ["s0", "s1", "s2", "s3"]


def test_only_the_kinds_that_are_asked_for_are_told(open_one: Open) -> None:
    store = open_one()
    store.put("a", {}, None)
    store.touch("a")
    store.delete("a")
    assert [event.kind for event in everything(store, kinds="deleted")] == [EventKind.DELETED]
    assert [event.kind for event in everything(store, kinds=["touched", EventKind.CREATED])] == [
        "created",
        "touched",
    ]
    for wrong in ("gone", [], ["created", "*"], 5):
        with pytest.raises(UsageError):
            store.feed(kinds=wrong)  # type: ignore[arg-type]


# -- where it begins -------------------------------------------------------------------------------


def test_a_feed_resumes_at_every_lsn_of_a_mixed_log(open_one: Open, seed: int) -> None:
    clock = Clock()
    store = open_one(segment_bytes=2048, clock=clock)
    mixed(store, clock, random.Random(seed))
    events = everything(store)
    assert {str(event.kind) for event in events} == set(EventKind)
    assert len(list_segments(store._log.cursor.log)) > 5
    lsns = [event.lsn for event in events]
    assert lsns == sorted(set(lsns))
    for lsn in range(1, store.position().lsn + 2):
        expected = [told(event) for event in events if event.lsn >= lsn]
        assert [told(event) for event in everything(store, lsn)] == expected, lsn
    for position in {event.position for event in events}:
        found = everything(store, position)
        assert [event.lsn for event in found] == [lsn for lsn in lsns if lsn > position.lsn]
        with store.feed(str(position), follow=False) as feed:
            assert [event.lsn for event in feed] == [event.lsn for event in found]


def test_a_consumer_goes_on_in_the_middle_of_a_frame(open_one: Open) -> None:
    store = open_one()
    store.feed(1, consumer="c").close()
    with store.batch() as batch:
        for number in range(5):
            batch.put(f"s{number}", {}, None)
    store.put("last", {}, None)
    seen = []
    for _ in range(6):
        with store.feed(consumer="c") as feed:
            event = next(feed)
            feed.ack(event)
            seen.append(event.id)
    assert seen == ["s0", "s1", "s2", "s3", "s4", "last"]


def test_a_feed_without_a_place_begins_where_it_was_asked_for(open_one: Open) -> None:
    store = open_one()
    store.put("before", {}, None)
    feed = store.feed(timeout_ms=2000)
    store.put("after", {}, None)
    assert next(feed).id == "after"


@pytest.mark.parametrize("wrong", [-1, 1 << 62, "3", True, 1.5])
def test_a_place_that_is_none_is_refused(open_one: Open, wrong: Any) -> None:
    with pytest.raises(UsageError):
        open_one().feed(wrong)


def test_a_place_that_the_log_does_not_reach_yet_is_an_error_that_names_it(open_one: Open) -> None:
    store = open_one()
    end = store.position().lsn
    assert everything(store, end + 1) == []
    with pytest.raises(PositionGoneError) as caught:
        store.feed(end + 2)
    assert caught.value.lsn == end + 2


def test_a_position_of_another_history_is_an_error_of_its_own_kind(open_one: Open) -> None:
    store = open_one()
    store.put("a", {}, None)
    end = store.position()
    with pytest.raises(DivergedError) as caught:
        store.feed(end._replace(chain=end.chain ^ 1))
    assert "from_lsn" in caught.value.hint
    with store.batch() as batch:
        batch.put("b", {}, None)
        batch.put("c", {}, None)
    with pytest.raises(DivergedError):  # the middle of a frame is no position
        store.feed(store.position()._replace(lsn=end.lsn + 1))


def test_where_the_log_was_dropped_the_feed_says_what_is_missing_and_0_is_the_oldest(open_one: Open) -> None:
    store = open_one(segment_bytes=1024)
    slow = store.feed(1, timeout_ms=0)
    for number in range(40):
        store.put(f"s{number}", {}, None)
    files = list_segments(store._log.cursor.log)
    for file in files[:3]:
        file.path.unlink()
    oldest = files[3].first_lsn
    with pytest.raises(PositionGoneError) as caught:
        store.feed(oldest - 1)
    assert caught.value.lsn == oldest - 1
    assert "from_lsn=0" in caught.value.hint
    assert everything(store)[0].lsn >= oldest
    with pytest.raises(PositionGoneError):
        for _ in slow:  # what it had open, it may still read
            pass


# -- what is committed -----------------------------------------------------------------------------


@pytest.fixture
def replicated(tmp_path: Path, open_one: Open) -> SessionStore:
    """A primary with sync_replicas = 1 behind whose gate nobody confirms anything."""
    path = tmp_path / "store"
    init_store(path, node="n1", now_ms=1)
    opened = open_store(path, OpenOptions())
    opened.log.lock_any()
    begin_cluster(opened.log, Config(("n1", "n2"), 1))
    opened.log.unlock()
    opened.close()
    store = open_one(gate=Silent(), write_timeout_ms=50)
    store._log.words[Word.VOTERS_CONNECTED] = 1
    return store


def append(store: SessionStore, id: str) -> int:
    """Append a creation without waiting for its commit; its LSN."""
    from perdure.store.event import Reason
    from perdure.store.session import encode_session

    value = encode_session(1, 1, 1, 0, 0, {})
    _, position = store._writer.commit(lambda stage: stage.put(id.encode(), value, Reason.CREATED, bytes(16)))
    assert position is not None
    return position.lsn


def test_with_sync_replicas_only_what_is_committed_is_told(replicated: SessionStore) -> None:
    store = replicated
    words = store._log.words
    words[Word.COMMITTED] = words[Word.APPENDED]
    feed = store.feed(0, timeout_ms=30)
    seen: list[SessionEvent] = []
    subscription = store.on("*", seen.append)
    first, second = append(store, "a"), append(store, "b")
    assert list(feed) == []
    assert everything(store) == []
    words[Word.COMMITTED] = first
    assert [event.id for event in feed] == ["a"]
    assert store.drain_events()
    words[Word.COMMITTED] = second
    assert [event.id for event in feed] == ["b"]
    assert store.drain_events()
    assert [event.id for event in seen] == ["a", "b"]
    subscription.cancel()


def test_what_a_feed_tells_can_be_read_in_the_store_at_once(open_one: Open) -> None:
    writer, reader = open_one(), open_one()
    feed = reader.feed(timeout_ms=5000)
    for number in range(50):
        writer.put(f"s{number}", {"n": number}, None)
        event = next(feed)
        found = reader.peek(event.id)
        assert found is not None and found.metadata == {"n": number}


# -- waiting and ending ----------------------------------------------------------------------------


def test_iteration_ends_after_the_timeout_and_goes_on_when_asked_again(open_one: Open) -> None:
    store = open_one()
    feed = store.feed(0, timeout_ms=20)
    store.put("a", {}, None)
    assert [event.id for event in feed] == ["a"]
    assert list(feed) == []
    store.put("b", {}, None)
    assert [event.id for event in feed] == ["b"]


def test_a_feed_that_does_not_follow_ends_with_what_was_committed_when_it_was_opened(open_one: Open) -> None:
    store = open_one()
    store.put("a", {}, None)
    feed = store.feed(0, follow=False)
    store.put("b", {}, None)
    assert [event.id for event in feed] == ["a"]
    assert list(store.feed(follow=False)) == []


def test_a_waiting_feed_is_told_of_another_handles_write(open_one: Open) -> None:
    writer, reader = open_one(), open_one()
    feed = reader.feed()
    timer = threading.Timer(0.05, lambda: writer.put("a", {}, None))
    timer.start()
    event = feed.next_event(timeout_ms=10_000)
    timer.join()  # what is not over when its store is closed is Indeterminate
    assert event is not None and event.id == "a"


@pytest.mark.parametrize("what", ["feed", "store"])
def test_closing_ends_a_wait_with_an_error_that_says_what_was_closed(open_one: Open, what: str) -> None:
    store = open_one()
    feed = store.feed()
    timer = threading.Timer(0.05, (feed if what == "feed" else store).close)
    timer.start()
    with pytest.raises(StoreClosedError, match=what):
        feed.next_event(timeout_ms=20_000)
    timer.join()
    feed.close()


def test_threads_that_share_a_feed_are_told_each_event_once(open_one: Open) -> None:
    store = open_one()
    for number in range(500):
        store.put(f"s{number}", {}, None)
    feed = store.feed(0, follow=False)
    shares: list[list[int]] = [[], [], []]

    def take(share: list[int]) -> None:
        share.extend(event.lsn for event in feed)

    threads = [threading.Thread(target=take, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lsn for share in shares for lsn in share) == [event.lsn for event in everything(store)]
    assert all(share == sorted(share) for share in shares)


def test_what_was_read_when_ctrl_c_came_is_read_again(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_one()
    feed = store.feed(0, consumer="c", timeout_ms=0)
    for number in range(5):
        store.put(f"s{number}", {}, None)
    real = feed._reader.read

    def interrupted(upto_lsn: int | None = None) -> list[SessionEvent] | None:
        real(upto_lsn)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feed._reader, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(feed)
    assert [event.id for event in feed] == [f"s{number}" for number in range(5)]


def test_a_child_is_refused_the_parents_feed_and_subscribers(open_one: Open) -> None:
    store = open_one()
    feed = store.feed(0, consumer="c", timeout_ms=20)
    store.put("a", {}, None)
    store.put("b", {}, None)
    assert next(feed).id == "a"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: next(feed), lambda: store.on("*", print), store.feed):
                try:
                    call()
                except ForkedError:
                    continue
                os._exit(2)
            feed.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert next(feed).id == "b"
    assert store.consumers()[0].lag_events == 1


# -- asyncio ---------------------------------------------------------------------------------------


def test_async_iteration_tells_the_same_and_leaves_the_loop_free(open_one: Open) -> None:
    store = open_one()
    for number in range(100):
        store.put(f"s{number}", {}, None)

    async def run() -> tuple[list[int], list[str], int]:
        ticks, late_at = 0, 1 << 30

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                if ticks == late_at:
                    store.put("late", {}, None)
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        done = [event.lsn async for event in store.feed(0, follow=False)]
        later = []
        async with AsyncFeed(store.feed(consumer="c", timeout_ms=20_000)) as feed:
            late_at = ticks + 20  # if the loop is not free while the feed waits, that never comes
            async for event in feed:
                later.append(event.id)
                await feed.ack(event)
                break
        ticking.cancel()
        return done, later, ticks

    done, later, ticks = asyncio.run(run())
    assert done == [event.lsn for event in everything(store) if event.id != "late"]
    assert later == ["late"]
    assert ticks > 10
    assert store.consumers()[0].lag_events == 0


def test_a_cancelled_wait_loses_no_event(open_one: Open, seed: int) -> None:
    rng = random.Random(seed)
    store = open_one()

    async def run() -> list[str]:
        feed = AsyncFeed(store.feed(0))
        seen: list[str] = []
        for number in range(100):
            store.put(f"s{number}", {}, None)
            waiting = asyncio.ensure_future(feed.next_event())
            await asyncio.sleep(rng.choice([0, 0, 0.0005, 0.002]))
            waiting.cancel()
            try:
                event = await waiting
                assert event is not None
                seen.append(event.id)
            except asyncio.CancelledError:
                continue
        while (event := await feed.next_event(timeout_ms=200)) is not None:
            seen.append(event.id)
        await feed.aclose()
        return seen

    assert asyncio.run(run()) == [f"s{number}" for number in range(100)]


# -- what it costs ---------------------------------------------------------------------------------


def test_nobody_listening_starts_no_thread_and_makes_no_file(open_one: Open, tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def has_begun() -> bool:
        return "perdure-events" in {thread.name for thread in set(threading.enumerate()) - before}

    store = open_one()
    store.put("a", {}, None)
    assert not has_begun()
    assert not (tmp_path / "store" / "feeds").exists()
    subscription = store.on("*", lambda event: None)
    assert has_begun()
    subscription.cancel()
    deadline_s = time.monotonic() + 20
    while has_begun():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_feed_that_is_left_open_is_closed_with_its_store(open_one: Open) -> None:
    store = open_one()
    feeds: list[Feed] = [store.feed(), store.feed(consumer="c")]
    store.close()
    for feed in feeds:
        with pytest.raises(StoreClosedError):
            feed.poll()
    again = open_one()
    assert not again.consumers()[0].is_active
