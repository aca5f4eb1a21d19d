"""Sweeping: what a pass looks at, how it goes on, who does it, and what it leaves to others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.store.control import Config
from perdure.store.cursor import LogCursor
from perdure.store.errors import CorruptError, ReentrantWriteError, StorageError, UsageError
from perdure.store.event import NO_OPERATION, Event, Kind, Reason
from perdure.store.opening import OpenOptions, begin_cluster, init_store, open_store
from perdure.store.promise import Promise
from perdure.store.session import ACCESSED, Session
from perdure.store.sessions import SessionStore
from perdure.store.stage import Stage
from perdure.store.sweeping import SWEEP_CHUNK, SWEEP_FOLD
from tests.support.machine import Clock, open_quietly

Open = Callable[..., SessionStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["lmdb", "sqlite"])
def open_one(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens handles of one store without background work."""
    opened: list[SessionStore] = []

    def open_it(**options: Any) -> SessionStore:
        settings = {"clock": clock, "backend": request.param, "sweep_interval_ms": 1, **options}
        store = open_quietly(tmp_path / "store", **settings)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


class Counting:
    """A back end that counts the calls to another one; `failing` makes the next look at deadlines fail."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: Counter[str] = Counter()
        self.failing = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if name == "due" and self.failing:
                self.failing -= 1
                raise StorageError("the disk is on fire")
            return found(*arguments, **options)

        return call


def count_calls(store: SessionStore) -> Counting:
    counting = Counting(store._opened.backend)
    store._view.backend = counting
    return counting


def fill(store: SessionStore, count: int, timeout_ms: int = 1000) -> list[str]:
    with store.batch() as batch:
        ids = [batch.create({}, timeout_ms=timeout_ms) for _ in range(count)]
    store.fold()
    return ids


def tick(store: SessionStore) -> None:
    """What the background thread does, once the interval is over."""
    store._keeper._sweeper._next_ms = 0
    store._keeper._sweeper.tick(store._writer)


def events(store: SessionStore) -> list[list[Event]]:
    """The events of every frame in the log."""
    log = store._log
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key)
    try:
        return [run.events(*found) for run in cursor.runs() for found in run.frames]
    finally:
        cursor.close()


def expired_keys(store: SessionStore) -> list[bytes]:
    return [event[3] for frame in events(store) for event in frame if event[0] == Kind.EXPIRE]


# -- a pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [True, False])
def test_a_pass_over_sessions_that_are_alive_visits_none_of_them(
    open_one: Open, clock: Clock, explicit: bool
) -> None:
    store = open_one()
    fill(store, 3000, timeout_ms=10_000)
    counting = count_calls(store)
    clock.ms += 9000
    if explicit:
        assert store.cleanup_expired() == 0
    else:
        tick(store)
    assert counting.calls["due"] == 1
    assert not counting.calls["get"] and not counting.calls["scan"] and not counting.calls["fold"]


def test_a_pass_in_the_background_does_one_chunk_a_tick_until_nothing_is_due(
    open_one: Open, clock: Clock
) -> None:
    store = open_one()
    ids = fill(store, 2 * SWEEP_CHUNK + 300)
    kept = store.create({}, timeout_ms=None)
    clock.ms += 2000
    left = []
    for _ in range(4):
        tick(store)
        left.append(store.count() - 1)
        assert store.get(kept) is not None
    assert left == [SWEEP_CHUNK + 300, 300, 0, 0]
    assert sorted(expired_keys(store)) == sorted(id.encode() for id in ids)
    assert not store._keeper._sweeper._is_under_way
    assert not store._opened.backend.due(1 << 62, 10)


def test_a_pass_that_is_over_begins_again_only_after_the_interval(open_one: Open, clock: Clock) -> None:
    store = open_one(sweep_interval_ms=60_000)
    fill(store, 3)
    clock.ms += 2000
    sweeper = store._keeper._sweeper
    sweeper.tick(store._writer)
    assert store.count() == 3
    tick(store)
    sweeper.tick(store._writer)
    assert store.count() == 0
    assert not sweeper._is_under_way
    fill(store, 3)
    clock.ms += 2000
    sweeper.tick(store._writer)
    assert store.count() == 3


def test_without_an_interval_nothing_is_swept_in_the_background(open_one: Open, clock: Clock) -> None:
    store = open_one(sweep_interval_ms=0)
    fill(store, 3)
    clock.ms += 2000
    tick(store)
    assert store.count() == 3
    assert store.cleanup_expired() == 3


def test_a_session_that_was_used_is_armed_anew(open_one: Open, clock: Clock) -> None:
    store = open_one()
    id = fill(store, 1, timeout_ms=10_000)[0]
    clock.ms += 9000
    store.touch(id)
    clock.ms += 9000
    tick(store)
    assert store.peek(id) is not None
    assert [at for at, _ in store._opened.backend.due(1 << 62, 10)] == [clock.ms + 2000]


def test_two_processes_sweep_each_session_once(open_one: Open, clock: Clock) -> None:
    first, second = open_one(), open_one()
    fill(first, SWEEP_CHUNK + 500)
    clock.ms += 2000
    for _ in range(3):
        tick(first)
        tick(second)
    assert first.count() == second.count() == 0
    keys = expired_keys(first)
    assert len(keys) == len(set(keys)) == SWEEP_CHUNK + 500


def test_while_another_process_sweeps_this_one_waits_for_its_turn(open_one: Open, clock: Clock) -> None:
    first, second = open_one(), open_one()
    fill(first, 10)
    clock.ms += 2000
    first._keeper._fold_lock.acquire(100)
    tick(second)
    assert second.count() == 10
    assert second._keeper._sweeper._is_under_way
    first._keeper._fold_lock.release()
    second._keeper._sweeper.tick(second._writer)
    assert second.count() == 0


def test_an_explicit_pass_removes_all_or_as_many_as_asked(open_one: Open, clock: Clock) -> None:
    store = open_one()
    fill(store, 2 * SWEEP_CHUNK + 300)
    clock.ms += 2000
    assert store.cleanup_expired(limit=7) == 7
    assert store.cleanup_expired() == 2 * SWEEP_CHUNK + 293
    assert store.cleanup_expired() == 0
    for wrong in (0, -1, 1.5):
        with pytest.raises(UsageError, match="limit"):
            store.cleanup_expired(wrong)  # type: ignore[arg-type]


def test_a_large_pass_is_made_of_frames_of_one_chunk_and_a_fold_for_several(
    open_one: Open, clock: Clock
) -> None:
    store = open_one()
    fill(store, SWEEP_FOLD + SWEEP_CHUNK + 300)
    clock.ms += 2000
    before = len(events(store))
    counting = count_calls(store)
    assert store.cleanup_expired() == SWEEP_FOLD + SWEEP_CHUNK + 300
    sizes = [len(frame) for frame in events(store)[before:]]
    assert sizes == [SWEEP_CHUNK] * (SWEEP_FOLD // SWEEP_CHUNK + 1) + [300]
    assert counting.calls["fold"] == 2
    assert counting.calls["get"] == SWEEP_FOLD + SWEEP_CHUNK + 300, "each session is looked up once"


def test_of_what_was_due_when_it_is_folded_each_session_that_is_there_keeps_its_deadline(
    open_one: Open, clock: Clock
) -> None:
    store = open_one()
    gone, used, forever, unused = fill(store, 4, timeout_ms=10_000)
    due = store._opened.backend.due(1 << 62, 10)
    clock.ms += 5000
    store.delete(gone)
    store.touch(used)
    store.update(forever, lambda session: session.replace(timeout_ms=None))
    plan = store._keeper._fold(due)
    assert plan is not None
    assert sorted(plan.disarmed) == sorted(due)
    left = sorted(store._opened.backend.due(1 << 62, 10))
    assert left == [(clock.ms + 6000, unused.encode()), (clock.ms + 11_000, used.encode())]


def test_what_expires_in_a_frame_that_waits_for_replicas_stays_armed_as_it_was(
    open_one: Open, clock: Clock, tmp_path: Path
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    store = open_one(backend=None)
    log, view = store._log, store._view
    log.lock_any()
    begin_cluster(log, Config(("n1", "n2"), 0))
    log.unlock()
    fill(store, 3)
    due = store._opened.backend.due(1 << 62, 10)
    clock.ms += 2000
    log.lock_any()
    log.roll_if_due(clock.ms + 7_200_000)
    log.append_control(None, Config(("n1", "n2"), 1), clock.ms)
    stage = Stage(view)
    assert stage.expire([key for _, key in due], clock.ms) == 3
    log.append(b"".join(stage.parts), stage.event_count, stage.digest, stage.session_count, clock.ms)
    view.took(stage.entries)
    log.unlock()
    plan = store._keeper._fold(due)
    assert plan is not None
    assert not plan.changes
    assert sorted(plan.armed) == due
    assert store._opened.backend.due(1 << 62, 10) == due
    assert store.count() == 3


def test_a_sweep_that_meets_a_damaged_record_says_so_and_expires_nothing_of_its_frame(
    open_one: Open, clock: Clock
) -> None:
    store = open_one()
    ids = fill(store, 5)
    backend, view = store._opened.backend, store._view
    record = backend.get(ids[2].encode())
    assert record is not None
    with view.mutex:
        backend.fold([(ids[2].encode(), record[:-1] + bytes([record[-1] ^ 1]))], [], [], view.state)
        view.release()
    clock.ms += 2000
    with pytest.raises(CorruptError, match=ids[2]):
        store.cleanup_expired()
    assert not expired_keys(store)
    assert store.count() == 5
    assert len(backend.due(1 << 62, 10)) == 5


def test_expiring_counts_what_the_same_frame_has_changed_before(open_one: Open, clock: Clock) -> None:
    store = open_one()
    ids = fill(store, 3)
    clock.ms += 2000
    keys = [id.encode() for id in ids]

    def evaluate(stage: Stage) -> int:
        stage.remove(keys[0], Kind.DELETE, Reason.DELETED, NO_OPERATION)
        stage.touch(keys[1], ACCESSED.pack(clock.ms), NO_OPERATION)
        return stage.expire(keys, clock.ms)

    assert store._writer.commit(evaluate)[0] == 1
    assert [event[3] for event in events(store)[-1] if event[0] == Kind.EXPIRE] == [keys[2]]
    assert store.count() == 1
    store.fold()
    scan = store._opened.backend.scan()
    records = [record for _, record in scan]
    scan.close()
    assert len(records) == scan.position.session_count == 1
    assert scan.position.digest == sum(int.from_bytes(record[:8], "little") for record in records)


def test_reads_go_on_while_a_large_sweep_is_under_way(
    open_one: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_one()
    fill(store, 10_000)
    kept = store.create({}, timeout_ms=None)
    store.fold()
    clock.ms += 2000
    swept: list[int] = []
    reads = 0
    commit = store._writer.commit

    def commit_after_two_reads(*arguments: Any, **named: Any) -> Any:
        wanted, deadline = reads + 2, time.monotonic() + 30
        while reads < wanted:
            assert time.monotonic() < deadline, "nobody can read between two chunks"
            time.sleep(0.0005)
        return commit(*arguments, **named)

    monkeypatch.setattr(store._writer, "commit", commit_after_two_reads)
    thread = threading.Thread(target=lambda: swept.append(store.cleanup_expired()))
    thread.start()
    while thread.is_alive():
        assert store.get(kept) is not None
        reads += 1
    thread.join()
    assert swept == [10_000]
    assert reads >= 20, "two a chunk"


# -- who sweeps ------------------------------------------------------------------------------------


def test_a_node_that_is_not_primary_sweeps_nothing_and_treats_what_expired_as_absent(
    open_one: Open, clock: Clock, tmp_path: Path
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    store = open_one(backend=None)
    store._log.lock_any()
    begin_cluster(store._log, Config(("n1", "n2"), 0))
    store._log.unlock()
    ids = fill(store, 3)
    store._log.lock_any()
    store._log.give_promise(Promise(2, "n2"))
    store._log.unlock()
    clock.ms += 2000
    tick(store)
    assert store.count() == 3
    assert all(store.get(id) is None for id in ids)


def test_without_the_replicas_that_its_writes_need_a_primary_waits_with_the_sweep(
    open_one: Open, clock: Clock, tmp_path: Path
) -> None:
    init_store(tmp_path / "store", node="n1", now_ms=1)
    store = open_one(backend=None, write_timeout_ms=60_000)
    store._log.lock_any()
    begin_cluster(store._log, Config(("n1", "n2"), 0))
    store._log.unlock()
    fill(store, 3)
    clock.ms += 2000
    store._log.lock_any()
    store._log.roll_if_due(clock.ms + 7_200_000)
    store._log.append_control(None, Config(("n1", "n2"), 1), clock.ms)
    store._log.unlock()
    began = time.monotonic()
    tick(store)
    assert time.monotonic() - began < 30  # a write would wait for a minute
    assert not expired_keys(store)


def test_the_background_thread_sweeps_and_says_why_it_could_not(tmp_path: Path, clock: Clock) -> None:
    options = OpenOptions(clock=clock, sweep_interval_ms=1)
    with SessionStore(open_store(tmp_path / "store", options), options, None) as store:
        counting = count_calls(store)
        counting.failing = 1_000_000  # until the error was seen
        fill(store, 5)
        clock.ms += 2000
        seen = []
        deadline = time.monotonic() + 30
        while store.count():
            assert time.monotonic() < deadline
            seen.append(store.stats()["background_error"])
            if seen[-1]:
                counting.failing = 0
            time.sleep(0.01)
        assert any(error and "on fire" in error for error in seen)
        while store.stats()["background_error"] is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# -- what comes in the place of what expired -------------------------------------------------------


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_put_in_the_place_of_a_session_that_expired_ends_that_one_first(
    open_one: Open, clock: Clock, in_batch: bool
) -> None:
    store = open_one()
    follower = open_one()
    store.put("mine", {"n": 1}, 1000)
    if in_batch:
        store.fold()
    clock.ms += 2000
    if in_batch:
        with store.batch() as batch:
            batch.put("mine", {"n": 2}, 5000)
            batch.put("mine", {"n": 3}, 5000)
    else:
        store.put("mine", {"n": 3}, 5000)
    frame = events(store)[-1]
    puts = [(Kind.PUT, Reason.REPLACED)] * (2 if in_batch else 1)
    assert [(event[0], event[1]) for event in frame] == [(Kind.EXPIRE, Reason.EXPIRED), *puts]
    for handle in (store, follower):
        session = handle["mine"]
        assert session.metadata == {"n": 3}
        assert (session.version, session.created_at) == (len(puts), clock.ms)
    store.fold()
    follower.fold()
    assert store.stats()["digest"] == follower.stats()["digest"]
    assert store.count() == follower.count() == 1
    clock.ms += 6000
    assert follower.cleanup_expired() == 1


def test_a_put_over_a_session_that_is_alive_ends_nothing(open_one: Open) -> None:
    store = open_one()
    store.put("mine", {"n": 1}, 1000)
    store.put("mine", {"n": 2}, 1000)
    assert not expired_keys(store)
    assert store["mine"].version == 2


def test_a_fold_inside_an_update_function_is_refused_and_holds_up_no_sweep(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", sweep_interval_ms=0) as store:
        store.put("a", {}, None)
        refused: list[type[Exception]] = []

        def fold(session: Session) -> Session:
            for call in (store.fold, store.cleanup_expired):
                try:
                    call()
                except ReentrantWriteError as error:
                    refused.append(type(error))
            return session

        store.update("a", fold)
        assert refused == [ReentrantWriteError, ReentrantWriteError]


def test_a_new_store_is_folded_when_it_is_idle_and_swept_without_anybody_asking(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", sweep_interval_ms=50) as store:
        store.create({}, timeout_ms=1)
        kept = store.create({})
        deadline = time.monotonic() + 30
        while len(expired_keys(store)) < 1 or store.count() > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert store._view.state.lsn > 0
        assert list(store.ids()) == [kept]
